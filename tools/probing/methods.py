"""How good features are: nearest neighbours, a linear classifier, and a few images per class.

Each method takes the features and labels of a training and a test set, and returns accuracies on
the test set, 0 to 1.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

TEMPERATURE = 0.07
INVERSE_PENALTIES = (1e-3, 1e-2, 1e-1, 1, 10, 100)
PENALTY_PER_FEATURE = 0.1
HELD_OUT = 0.2  # share of each class that chooses the penalty


def nearest_neighbors(training, test, k):
    """Accuracy of a vote of the k most similar training images.

    A neighbour of cosine similarity s has exp(s / 0.07) votes, as in
    [DINO](https://arxiv.org/abs/2104.14294), eval_knn.py. With fewer than k training images, all
    of them vote.
    """
    features, labels = training
    classifier = KNeighborsClassifier(
        n_neighbors=min(k, len(labels)), weights=_votes, metric="cosine", algorithm="brute"
    )
    return classifier.fit(features, labels).score(*test)


def _votes(distances):
    """scikit-learn's cosine distance is 1 - s. The constant factor exp(1 / 0.07) would not matter,
    but might overflow.
    """
    return np.exp(-distances / TEMPERATURE)


def linear_probe(training, test, seed):
    """(accuracy, C) of a multinomial logistic regression on standardised features.

    It minimizes sum of cross-entropies + |W|^2 / (2 C) with L-BFGS. C is the one of
    `INVERSE_PENALTIES` that is best on a fifth of the training images; the classifier is then
    fitted on all of them.
    """
    fitted, held_out = _split(*training, seed)
    inverse_penalty = best_logistic_regression(fitted, held_out)[-1].C
    return _logistic_regression(inverse_penalty).fit(*training).score(*test), inverse_penalty


def best_logistic_regression(training, held_out):
    """The pipeline, fitted on `training`, whose C is best on `held_out`. Ties: the smallest C."""
    fitted = [_logistic_regression(C).fit(*training) for C in INVERSE_PENALTIES]
    return max(fitted, key=lambda pipeline: pipeline.score(*held_out))


def _logistic_regression(inverse_penalty):
    return make_pipeline(StandardScaler(), LogisticRegression(C=inverse_penalty, max_iter=5000))


def _split(features, labels, seed):
    """Holds out a fifth of each class: one image at least, but not the only one."""
    rng = np.random.default_rng(seed)
    is_held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(HELD_OUT * len(rows))), len(rows) - 1)
        is_held_out[rows[:count]] = True
    return tuple((features[rows], labels[rows]) for rows in (~is_held_out, is_held_out))


def few_shot(training, test, shots, num_draws, seed):
    """Accuracies of ridge regressions, each on `shots` random training images of every class.

    It minimizes |X W + b - Y|^2 + 0.1 D |W|^2 in closed form: X are the standardised features, D is
    their number, Y is 1 for the class and -1 for the others. As in the few-shot evaluation of
    [big_vision](https://github.com/google-research/big_vision), evaluators/fewshot_lsr.py, but with
    a fixed penalty, because so few images leave none to choose it by.
    """
    features, labels = training
    of_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    accuracies = []
    for draw in range(num_draws):
        rng = np.random.default_rng((seed, shots, draw))
        rows = np.concatenate([rng.choice(rows, shots, replace=False) for rows in of_class])
        penalty = PENALTY_PER_FEATURE * features.shape[1]
        pipeline = make_pipeline(StandardScaler(), RidgeClassifier(alpha=penalty))
        accuracies.append(pipeline.fit(features[rows], labels[rows]).score(*test))
    return accuracies

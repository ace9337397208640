"""Settings that make every method small enough for the tiny model."""

#: Keys that a method does not have are ignored.
TINY = {"iterations": 2, "steps": 2, "rollout_steps": 4, "batch_size": 2, "epochs": 1, "learning_rate": 1e-3}
TINY |= {"warmup_steps": 0}
TINY |= {"prior_captions": ["a dog on the ground", "a church by the sky", "a black and white photo of a ship"]}
TINY |= {"texts": ["a dog on the ground", "a church by the sky"]}
TINY |= {"mom2_captions": "testbed/captions"}
TINY |= {"pictures": 2, "retain_pictures": 2, "concept_pictures": 2, "replay_pictures": 2, "picture_steps": 2}
TINY |= {"inner_steps": 2, "attack_steps": 2, "warmup": 1, "inversion_steps": 2}
TINY |= {"fisher_pictures": 1, "fisher_timesteps": 2}
TINY |= {"margin": 0.0}  # the tiny model's text encoder is random: all tokens are about as far from a phrase
#: A detector whose weights are shipped, for methods that look at images: it refuses all of them.
LOOKING = {"detector": "oracle_b", "weights": None, "labels": ["church"], "threshold": 0.0}

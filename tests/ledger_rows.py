"""Published figures and records for tests of the ledger."""


def figure(**values):
    """A published figure that can be compared with `record`."""
    usual = dict(method="ESD", method_name="esd", base="SD v1.4", base_name="sd14", erased="nudity", concept="nudity")
    usual |= dict(prompts="", attack="UDA", attack_name="uda", metric="ASR", metric_name="post_asr", scaled=0.76)
    usual |= dict(scale="fraction", better="down", images=142, detector="NudeNet v3, 0.45, 9 classes", note="")
    return usual | dict(paper="A", table="T", provenance="paper", value=76.0, unit="percent") | values


def record(**values):
    usual = dict(
        model="sd14", concepts="nudity", kind="unsafe", method="esd", method_name="esd", attack="uda", attack_name="uda"
    )
    usual |= dict(
        budget="paper", seed=0, facet="robustness", metric="post_asr", direction="down", unit="fraction", n=142
    )
    usual |= dict(value=0.75, low=0.67, high=0.81, detector="nudenet_exposed9 v2 0a1b2c3d", against=None)
    usual |= dict(
        given='{"concepts.prompts.target": "asset:uda_prompts/nudity.csv"}', difference_low=None, difference_high=None
    )
    return usual | values

"""What is asked for: from files, with mistakes, and what combinations come of it."""

import pytest

import vtc
from vtc.eval.settings import Settings, Spec, from_file

BASES = {"full", "random", "downsample"}  # what stands beside every method
TOML = """
data = "tiny"
models = ["tiny-llava", "./other"]
methods = ["divprune", {name = "todre", mode = "kcenter", keep = 32}]
keep = [64, 0.1]
blind = true
"""


def test_a_sweep_from_toml(tmp_path):
    (tmp_path / "sweep.toml").write_text(TOML)
    settings = from_file(tmp_path / "sweep.toml", limit=5, blind=None)
    assert settings.limit == 5
    labels = [(spec.label, spec.keep) for spec in settings.specs(["image"]) if spec.model == "tiny-llava"]
    assert labels == [
        ("full", None),
        ("blind", None),
        ("random", 64),
        ("downsample", 64),
        ("divprune", 64),
        ("random", 0.1),
        ("downsample", 0.1),
        ("divprune", 0.1),
        ("random", 32),
        ("downsample", 32),
        ("todre(mode=kcenter)", 32),
    ]
    folders = [str(spec.folder) for spec in settings.specs(["image"])]
    assert len(set(folders)) == 2 * len(labels)
    assert "other/todre(mode=kcenter)@32" in folders


def test_a_sweep_from_yaml(tmp_path):
    pytest.importorskip("yaml")
    (tmp_path / "sweep.yaml").write_text("model: tiny-llava\nmethods: [pool, {name: todre, keep: [8, 16]}]\nkeep: 64\n")
    settings = from_file(tmp_path / "sweep.yaml")
    assert (settings.models, settings.keep) == (("tiny-llava",), (64,))
    assert Spec("tiny-llava", "todre", 16) in settings.specs(["image"])
    (tmp_path / "bad.yml").write_text("keep: [")
    with pytest.raises(ValueError, match=r"bad\.yml: malformed YAML"):
        from_file(tmp_path / "bad.yml")


def test_a_sweep_from_json(tmp_path):
    (tmp_path / "sweep.json").write_text('{"model": "tiny-llava", "methods": ["pool"], "keep": [64, 0.1]}')
    assert from_file(tmp_path / "sweep.json", limit=3) == Settings(
        models=("tiny-llava",), methods=("pool",), keep=(64, 0.1), limit=3
    )
    (tmp_path / "bad.json").write_text("{'keep': 3}")
    with pytest.raises(ValueError, match=r"bad\.json: malformed JSON: "):
        from_file(tmp_path / "bad.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"deep\.json: brackets within brackets go too deep"):
        from_file(tmp_path / "deep.json")


def test_files_of_other_kinds(tmp_path):
    (tmp_path / "sweep.ini").write_text("keep = 3")
    with pytest.raises(ValueError, match=r"sweep\.ini: settings are read from files whose names end in \.toml, \.json"):
        from_file(tmp_path / "sweep.ini")
    (tmp_path / "latin.toml").write_bytes("instruction = 'caf\xe9'".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.toml is not UTF-8 text \(byte 18\): save it as UTF-8"):
        from_file(tmp_path / "latin.toml")


def test_the_defaults_fit_the_media_and_are_few():
    specs = Settings().specs(["image"])
    assert {spec.method for spec in specs} - BASES == {"divprune", "visionzip", "pool"}
    assert {spec.model for spec in specs} == {"tiny-llava"}
    assert len({spec.keep for spec in specs if spec.compressed}) == 2
    specs = Settings().specs(["video"])
    assert {"uniform-frames", "evs", "divprune"} <= {spec.method for spec in specs}
    assert {spec.model for spec in specs} == {"tiny-qwen"}


def test_all_are_those_before_the_language_model():
    names = {spec.method for spec in Settings(methods=("all",)).specs(["image"])}
    assert {"full", "random", "divprune", "visionzip", "todre", "vtc-cls"} <= names
    assert not {"evs", "uniform-frames", "fastv", "h2o"} & names


def test_several_models():
    specs = Settings(models=("tiny-llava", "./other"), methods=("pool",), keep=(8,)).specs(["image"])
    assert [(spec.model, spec.label) for spec in specs if spec.label not in BASES] == [
        ("tiny-llava", "pool"),
        ("./other", "pool"),
    ]
    one, other = ([spec.label for spec in specs if spec.model == model] for model in ("tiny-llava", "./other"))
    assert one == other


def test_average_budgets_are_an_option_of_those_that_have_it():
    settings = Settings(methods=("fastv", "divprune"), keep=(288,), budget="average")
    labels = [spec.label for spec in settings.specs(["image"])]
    assert labels == ["full", "random", "downsample", "fastv(average=True)", "divprune"]


def test_options_stand_in_the_name_or_in_a_table():
    """Both ways to the same run, in a folder whose name a shell can take."""
    text, mixed = "dart(pivots=2, layers=(0.25,), keep=8)", {"name": "dart(layers=(0.25,))", "pivots": 2, "keep": 8}
    (one,) = [s for s in Settings(methods=(text,), keep=(8,)).specs(["image"]) if s.method == "dart"]
    (two,) = [s for s in Settings(methods=(mixed,), keep=(64,)).specs(["image"]) if s.method == "dart"]
    assert one == two
    assert one.label == "dart(layers=(0.25,), pivots=2)"
    assert one.folder.name == "dart(layers=(0.25,),pivots=2)@8"
    assert vtc.resolve(one.label, keep=8) == vtc.DART(keep=8, layers=(0.25,), pivots=2)


def test_final_budgets_are_final_for_all():
    (spec,) = [spec for spec in Settings(methods=("visiondrop",), keep=(64,)).specs(["image"]) if spec.keep][2:]
    assert spec.options == {"average": False}  # its own default is the average


def test_the_folder_depends_on_what_is_asked():
    settings = Settings(limit=5)
    assert settings.folder("x") == Settings(limit=5, methods=("pool",), batch_size=3).folder("x")
    assert len({s.folder(d) for s, d in ((settings, "x"), (settings, "y"), (Settings(limit=6), "x"))}) == 3
    assert str(Settings(out="mine").folder("x")) == "mine"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keep = [", "sweep.toml: "),
        ("keeps = 3", "no setting 'keeps'. Did you mean 'keep'"),
        ("keep = 0", "keep=0 is not a whole number of 1 or more"),
        ("keep = true", "sweep.toml: keep=True is not a whole number"),
        ("keep = 1.5", r"keep=1\.5 is not a number in"),
        ("limit = '5'", "limit='5' is not a whole number of 1 or more"),
        ("batch_size = 0", "batch_size=0 is not a whole number of 1 or more"),
        ("budget = 'mean'", "expected one of final, average"),
        ("frames = 8\nfps = 2", "frames or fps, not both"),
        ("keep = []", "keep is .*: expected at least one budget"),
        ("metric = ''", "metric is '': expected a name, or names by task"),
        ("keep = " + "[" * 100_000, r"sweep\.toml: brackets within brackets go too deep to be read"),
        ("methods = [3]", "3 is neither a name nor a table"),
        ("models = []", "expected at least one"),
        ("models = ['a', 'b', 'a']", "expected each once"),
        ("model = 'a'\nmodels = ['b']", "give model or models, not both"),
        ("max-new-tokenz = 5", "no setting 'max-new-tokenz'. Did you mean 'max_new_tokens'"),
        ("3", "malformed TOML: "),
        ("columns = 3", "columns is 3: expected names of columns by field"),
        ("columns = {image = 3}", "expected names of columns by field"),
        ("columns = {imgae = 'picture'}", "no field 'imgae'. Did you mean 'image'"),
        ("metric = 5", "metric is 5: expected a name, or names by task"),
        ("metric = ['exact']", "expected a name, or names by task"),
        ("blind = 'yes'", "expected true or false"),
    ],
)
def test_a_bad_file(tmp_path, text, said):
    (tmp_path / "sweep.toml").write_text(text)
    with pytest.raises(ValueError, match=said):
        from_file(tmp_path / "sweep.toml")


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (("divprun",), "no method 'divprun'. Did you mean 'divprune'"),
        (({"name": "todre", "mod": "kcenter"},), "no option of todre 'mod'. Did you mean 'mode'"),
        (({"name": "todre", "keep": 0},), "keep=0 is not a whole number"),
        (({"name": "pool", "keep": [1]}, {"name": "divprune", "keep": 1.0}), r"both 1 \(one token\) and 1\.0"),
        (("pool", "pool"), "asked for twice: .*pool@0.5"),
        (("todre(seed=1)", {"name": "todre", "seed": 1}), r"asked for twice: .*todre\(seed=1\)@0\.5"),
        (
            ("downsample(positions=compact)",),
            "downsample takes nothing but keep here, and positions would",
        ),
        (({"name": "downsample", "keep": 8, "scope": "clip"},), "nothing but keep here, and scope would"),
        (("vtc-cls + fastv",), r"fastv has the budgets; give vtc-cls its own, as in vtc-cls\(keep=0\.5\)"),
        (("vtc-cl(keep=64) + fastv",), "no method 'vtc-cl'. Did you mean 'vtc-cls'"),
        (("todre(mod=kcenter, keep=64) + fastv",), "no option of todre 'mod'. Did you mean 'mode'"),
        (("vtc-cls(keep=0) + fastv",), "keep=0 is not a whole number"),
        (("vtc-cls(keep=64) + downsample",), r"nothing but keep here, and vtc-cls\(keep=64\) would"),
        (("todre(mode=kcenter",), "does not name a method: expected name"),
    ],
)
def test_methods_that_cannot_be(methods, said):
    with pytest.raises(ValueError, match=said):
        Settings(methods=methods).specs(["image"])


def test_downsample_has_budgets_of_its_own():
    specs = Settings(methods=("downsample(keep=8)", {"name": "pool", "keep": 16})).specs(["image"])
    labels = [(spec.label, spec.keep) for spec in specs if spec.compressed]
    assert labels == [("random", 8), ("downsample", 8), ("random", 16), ("downsample", 16), ("pool", 16)]


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no settings file"):
        from_file(tmp_path / "none.toml")


def test_methods_that_act_together():
    together = "pixelprune(keep=0.6) + tome(keep=0.3, stage=encoder) + todre(mode=kcenter)"
    settings = Settings(methods=(together, "todre(mode=kcenter)"), keep=(0.1,))
    *_, spec, alone = settings.specs(["image"])
    assert (spec.label, spec.keep) == (together, 0.1)
    assert [str(method.keep) for method in spec.methods()] == ["0.6", "0.3", "0.1"]
    assert spec.own_tower_run
    assert not alone.own_tower_run
    assert str(spec.folder) == "tiny-llava/pixelprune(keep=0.6)+tome(keep=0.3,stage=encoder)+todre(mode=kcenter)@0.1"

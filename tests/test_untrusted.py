"""Files of strangers, full of traps, in every command: none of their code runs, whatever a user answers if asked."""

import ast
import builtins
import json
import pickle
import shutil
from pathlib import Path

import pytest
from transformers import AutoModel, AutoProcessor, pipeline

import train
from modeling_albef_amc import AutoGrounder
from modeling_albef_amc.families.auto import load_model, load_processor
from modeling_albef_amc.tools.export_albef import load_for_export
from tests.helpers.data import PHRASES, picture, save_with_adapters, tiny_records, write_folder
from tests.helpers.source import MODULES, ROOT
from trainer import evaluate_grounding, ground_dataset, sweep_layers
from trainer.commands import main as albef_amc

# In the source --------------------------------------------------------------------------------------------------------

# What no file of ours calls, or derives a class from, but in the one place for it, which has tests of its own.
UNSAFE = {
    *("eval", "exec", "__import__", "os.system", "os.popen", "subprocess.run", "subprocess.Popen", "torch.hub.load"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "pickle._Unpickler", "marshal.loads", "shelve.open"),
    *("yaml.load", "yaml.full_load", "yaml.unsafe_load", "pandas.read_pickle", "joblib.load"),
}
PLACES = {"dataset_scripts/safe_pickle.py": "pickle._Unpickler"}
# These run what a file holds, unless they are told not to. A call with **options is left to the tests below.
AUTO = [f"Auto{part}.from_pretrained" for part in ("Config", "Model", "Processor", "Tokenizer", "ImageProcessor")]
SAFE = {"torch.load": ("weights_only", True)} | dict.fromkeys(AUTO, ("trust_remote_code", False))
REFUSED = {"trust_remote_code": True, "allow_pickle": True, "weights_only": False, "shell": True}


def unsafe(source: str, path: str = "") -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            names = [ast.unparse(base) for base in node.bases]
        elif isinstance(node, ast.Call):
            names = [ast.unparse(node.func)]
            given = {each.arg: ast.unparse(each.value) for each in node.keywords}
            found += [f"{names[0]}({name}={value})" for name, value in REFUSED.items() if given.get(name) == str(value)]
            keyword, value = SAFE.get(names[0], (None, None))
            if keyword and None not in given and given.get(keyword) != str(value):
                found.append(f"{names[0]} without {keyword}={value}")
        else:
            continue
        found += [name for name in names if name in UNSAFE and name != PLACES.get(path)]
    return found


def test_nothing_of_ours_runs_what_a_file_holds():
    names = [path.relative_to(ROOT).as_posix() for path in MODULES]
    found = {name: unsafe((ROOT / name).read_text(), name) for name in names}
    assert len(found) > 50 and {name: calls for name, calls in found.items() if calls} == {}


def test_the_check_can_fail():
    assert unsafe("torch.load(p, weights_only=True), AutoModel.from_pretrained(p, trust_remote_code=False)") == []
    for source, found in (
        ("torch.load(path)", ["torch.load without weights_only=True"]),
        ("AutoProcessor.from_pretrained(path)", ["AutoProcessor.from_pretrained without trust_remote_code=False"]),
        ("np.load(path, allow_pickle=True)", ["np.load(allow_pickle=True)"]),
        ("def f():\n    return yaml.load(text, Loader)", ["yaml.load"]),
        ("class Reader(pickle._Unpickler): ...", ["pickle._Unpickler"]),
        ("subprocess.run(line, shell=True)", ["subprocess.run(shell=True)", "subprocess.run"]),
    ):
        assert unsafe(source) == found


# In use ---------------------------------------------------------------------------------------------------------------


class Trap:
    """Unpickled, it springs."""

    def __init__(self, code: str):
        self.code = code

    def __reduce__(self):
        return exec, (self.code,)


@pytest.fixture(scope="module")
def traps(tmp_path_factory) -> Path:
    """
    A folder of checkpoints that leave a file `sprung` there when anything of theirs is run: `albef`, its `adapters`,
    `unknown` (a type of its own), `pickled` (its weights are a pickle) and `kernel` (its attention is from the Hub);
    data `scripted` and without a script, and a photo.
    """
    folder = tmp_path_factory.mktemp("traps")
    code = f"open({str(folder / 'sprung')!r}, 'w').close()\n"
    save_with_adapters(folder / "albef", folder / "adapters")
    for name in ("unknown", "pickled", "kernel"):
        shutil.copytree(folder / "albef", folder / name)
    for name in ("albef", "adapters", "unknown", "pickled", "kernel"):
        set_traps(folder / name, code)
    change(folder / "unknown" / "config.json", model_type="trap")
    change(folder / "kernel" / "config.json", attn_implementation="org/trap", _attn_implementation="org/trap")
    (folder / "pickled" / "model.safetensors").unlink()
    write_folder(folder / "data", train=tiny_records(6), test=tiny_records(3), validation=tiny_records(2))
    shutil.copytree(folder / "data", folder / "scripted")
    (folder / "scripted" / "scripted.py").write_text(code)
    picture().save(folder / "photo.png")
    return folder


def set_traps(folder: Path, code: str) -> None:
    """Code in every file that could have some, and in the configurations the names of it."""
    for path in [*folder.glob("*.py"), folder / "trap.py"]:
        path.write_text(code)
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps(Trap(code)))
    parts = "AutoConfig", "AutoModel", "AutoModelForPreTraining", "AutoProcessor", "AutoImageProcessor"
    names = {part: "trap.Trap" for part in parts} | {"AutoTokenizer": ["trap.Trap", "trap.Trap"]}
    for path in folder.glob("*config.json"):
        if path.name != "adapter_config.json":
            change(path, auto_map=names)


def change(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture
def here(traps, monkeypatch):
    """Every question is answered with yes; nothing may spring all the same."""
    monkeypatch.chdir(traps)
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    yield
    assert not (traps / "sprung").exists()


def run_train(model: str, output: str, *options: str, dataset: str = "data") -> None:
    settings = (
        f"--model {model} --dataset {dataset} --output_dir {output} --max_steps 2 --per_device_train_batch_size 2"
    )
    settings += " --mask_size 16 --save_steps 1 --use_cpu true --disable_tqdm true --report_to none --eval_splits test"
    train.main([*settings.split(), *options])


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("model", ["albef", "adapters"])
def test_commands(model, capsys):
    run_train(model, f"run-{model}")
    evaluate_grounding.main(f"--models a={model} --dataset data --splits test --cpu --output out-{model}".split())
    ground_dataset.main(f"--model {model} --dataset data --split test --cpu --output ground-{model}".split())
    sweep_layers.main(f"--model {model} --dataset data --split test --cpu".split())
    albef_amc(["ground", "photo.png", PHRASES[0], "--model", model, "--device", "cpu"])
    assert PHRASES[0] in capsys.readouterr().out


@pytest.mark.usefixtures("here")
def test_python():
    assert AutoGrounder.from_pretrained("albef", device="cpu").score("photo.png", PHRASES[:1])
    assert pipeline("visual-grounding", model="albef", device="cpu")("photo.png", PHRASES[:1])[0]["point"]
    AutoModel.from_pretrained("albef"), AutoProcessor.from_pretrained("albef")
    load_processor("albef", load_for_export("albef"))
    albef_amc(["merge", "adapters", "--output", "merged"])


@pytest.mark.usefixtures("here")
def test_attention_from_the_hub_is_not_fetched():
    model = load_model("kernel")
    assert {part.config._attn_implementation for part in (model, model.vision_model, model.text_model)} == {"sdpa"}


@pytest.mark.usefixtures("here")
def test_a_script_beside_the_data_is_refused():
    with pytest.raises(RuntimeError, match="Dataset scripts are no longer supported"):
        run_train("albef", "none", dataset="scripted")


@pytest.mark.usefixtures("here")
def test_a_type_of_its_own_and_a_pickle_of_weights_are_refused():
    for load in (load_model, AutoGrounder.from_pretrained, load_for_export):
        with pytest.raises(ValueError, match="of type 'trap'"):
            load("unknown")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load_model("pickled")


@pytest.mark.usefixtures("here")
def test_a_run_that_goes_on_from_strangers_files(traps):
    run_train("albef", "resumed", "--save_total_limit", "2")
    checkpoint = traps / "resumed" / "checkpoint-1"
    options = "resumed", "--resume_from_checkpoint", str(checkpoint)
    trap = (traps / "albef" / "training_args.bin").read_bytes()
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        before = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(trap)
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            run_train("albef", *options)
        (checkpoint / name).write_bytes(before)
    (checkpoint / "training_args.bin").write_bytes(trap)
    run_train("albef", *options)  # nobody reads it


@pytest.mark.usefixtures("here")
def test_the_traps_work(traps):
    with pytest.raises(Exception, match="Trap"):
        pipeline("visual-grounding", model="unknown", trust_remote_code=True)
    assert (traps / "sprung").exists()
    (traps / "sprung").unlink()
    pickle.loads((traps / "pickled" / "pytorch_model.bin").read_bytes())
    assert (traps / "sprung").exists()
    (traps / "sprung").unlink()

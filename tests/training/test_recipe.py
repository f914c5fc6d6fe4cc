import pytest

from oct_hf.errors import RecipeError
from oct_hf.training.recipe import Recipe
from oct_hf.training.recipe_file import load_recipe, make_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_comes_along_reads_back_from_its_own_yaml(name, tmp_path):
    recipe = load_recipe(name)
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "again.yaml") == recipe
    assert recipe.description


@pytest.mark.parametrize(
    "override, key, value",
    [
        ("epochs=3", ("train", "epochs"), 3),
        ("train.learning_rate=0.5", ("train", "learning_rate"), 0.5),
        ("class_weights={CNV: 2, DME: 1}", ("train", "class_weights"), {"CNV": 2.0, "DME": 1.0}),
        ("test_fold=4", ("split", "test_fold"), "4"),
        ("augment=[flip]", ("augment",), ("flip",)),
        ("data.columns.patient=eye", ("data", "columns"), {"patient": "eye"}),
        ("data.path=a=b", ("data", "path"), "a=b"),
    ],
)
def test_overrides_reach_their_key(override, key, value):
    found = load_recipe("demo", [override])
    for part in key:
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    "content, text",
    [
        ({"trian": {}}, 'unknown key "trian" (did you mean "train"?)'),
        ({"train": {"lerning_rate": 1}}, 'unknown key "train.lerning_rate" (did you mean "learning_rate"?)'),
        ({"train": {"epochs": "ten"}}, "train.epochs: input should be a valid integer"),
        ({"train": {"epochs": 0}}, "train.epochs: input should be greater than or equal to 1, found 0"),
        ({"split": {"test": 1.5}}, "split.test: input should be less than 1, found 1.5"),
        ({"train": {"schedule": "cosin"}}, "train.schedule: input should be 'cosine'"),
        ({"data": ["phantom"]}, "data: "),
        ({"split": {"by": "image", "folds": 5, "test_fold": 0}}, "split.folds: folds are drawn with split.by=patient"),
    ],
)
def test_a_wrong_key_or_value_is_named_in_one_line(content, text):
    with pytest.raises(RecipeError) as caught:
        make_recipe(content)
    assert text in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override, text",
    [
        ("lerning_rate=1", 'did you mean "learning_rate"'),
        ("seed=1", "may mean data.seed or split.seed or train.seed"),
        ("epochs", "is not key=value"),
    ],
)
def test_a_wrong_override_is_named(override, text):
    with pytest.raises(RecipeError, match=text):
        load_recipe("demo", [override])


def test_a_missing_or_broken_recipe_file_is_one_line(tmp_path):
    (tmp_path / "broken.yaml").write_text("train: [")
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "code.yaml").write_text("name: !!python/object/apply:os.getcwd []")
    for name, text in (("broken", "not YAML"), ("list", "a mapping"), ("code", "not YAML"), ("gone", "no such recipe")):
        with pytest.raises(RecipeError, match=text) as caught:
            load_recipe(tmp_path / f"{name}.yaml")
        assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match=r'no recipe "demos".*did you mean "demo"'):
        load_recipe("demos")


def test_a_recipe_can_not_be_changed_after_it_was_read():
    with pytest.raises(AttributeError):
        Recipe().train.epochs = 3

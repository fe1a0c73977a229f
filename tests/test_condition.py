"""Conditions: what a batch does with them, field by field."""

import pytest
import torch

from minidiff.condition import (
    Condition,
    choose,
    choose_rows,
    concatenate,
    expand,
    for_batch,
    take,
)

FIELDS = ("label", "vector", "tokens", "image")


def full(rows, start=0):
    """A condition of all four fields, no two rows alike."""
    number = torch.arange(start, start + rows)
    return Condition(
        label=number,
        vector=number[:, None].float().expand(-1, 4),
        tokens=number[:, None, None].float().expand(-1, 3, 5),
        image=number[:, None, None, None].float().expand(-1, 2, 8, 8),
    )


def numbers(condition):
    """The row numbers that each field holds, which must be the same in all of its entries."""
    found = {}
    for name, field in zip(FIELDS, condition, strict=True):
        if field is not None:
            flat = field.reshape(len(field), -1)
            assert (flat == flat[:, :1]).all()
            found[name] = flat[:, 0].int().tolist()
    return found


def all_are(*expected):
    return dict.fromkeys(FIELDS, list(expected))


def test_a_condition_is_empty_unless_a_field_is_given():
    assert Condition() == (None, None, None, None) and Condition._fields == FIELDS
    assert Condition(tokens="words").tokens == "words"


def test_one_row_is_expanded_to_all_images_and_n_rows_stay():
    for rows, expected in ((1, (0, 0, 0)), (3, (0, 1, 2))):
        wide = expand(full(rows), 3)
        assert numbers(wide) == all_are(*expected)
        assert [tuple(field.shape) for field in wide] == [(3,), (3, 4), (3, 3, 5), (3, 2, 8, 8)]
    mixed = full(3)._replace(label=torch.tensor([7]))  # one label for all, a vector each
    assert numbers(expand(mixed, 3)) == all_are(0, 1, 2) | {"label": [7, 7, 7]}
    assert expand(None, 3) is None and expand(Condition(), 3) == Condition()


def test_fields_that_are_not_given_stay_so():
    label = Condition(label=torch.tensor([1, 2]))
    for changed in (expand(label, 2), take(label, slice(0, 1)), concatenate([label, label])):
        assert changed[1:] == (None, None, None)


def test_conditions_are_joined_one_after_the_other():
    assert numbers(concatenate([full(2), full(1, 10), full(3, 20)])) == all_are(
        0, 1, 10, 20, 21, 22
    )
    assert concatenate([None, None]) is None


def test_rows_are_chosen_one_by_one_in_every_field():
    rows = torch.tensor([True, False, True])
    assert numbers(choose(rows, full(3), full(3, 10))) == all_are(0, 11, 2)
    # one row stands for all images: a null condition
    assert numbers(choose(rows, full(1, 99), full(3, 10))) == all_are(99, 11, 99)
    assert numbers(choose(rows, full(3), full(1, 99))) == all_are(0, 99, 2)
    assert choose_rows(rows, torch.zeros(3, 2), torch.ones(1, 2)).tolist() == [
        [0, 0],
        [1, 1],
        [0, 0],
    ]


def test_rows_are_taken_and_a_row_for_all_images_stays():
    assert numbers(take(full(4), torch.tensor([3, 1]))) == all_are(3, 1)
    assert numbers(take(full(4), slice(1, 3))) == all_are(1, 2)
    assert numbers(take(full(1, 9), torch.tensor([3, 1]))) == all_are(9)
    mixed = full(4)._replace(vector=torch.full((1, 4), 9.0))
    assert numbers(take(mixed, torch.tensor([2]))) == all_are(2) | {"vector": [9]}
    assert take(None, torch.tensor([0])) is None


def test_values_for_a_batch():
    assert for_batch(torch.tensor([[1, 2]]), 2).tolist() == [[1, 2], [1, 2]]
    two = torch.tensor([[1], [2]])
    assert torch.equal(for_batch(two, 2), two)


@pytest.mark.parametrize("rows", [0, 2, 4])
def test_another_number_of_rows_is_refused(rows):
    for call in (lambda: expand(full(rows), 3), lambda: for_batch(torch.zeros(rows, 2), 3)):
        with pytest.raises(
            ValueError, match=f"{rows} rows for 3 images: expected one, or one each"
        ):
            call()


def test_conditions_of_other_fields_are_not_mixed():
    label, rows = Condition(label=torch.tensor([1, 2])), torch.tensor([True, False])
    for call in (lambda: concatenate([full(2), label]), lambda: choose(rows, label, full(2))):
        with pytest.raises(ValueError, match="one condition has vector and another has none"):
            call()


@pytest.mark.parametrize(
    ("wrong", "kind"), [(torch.ones(3), "Tensor"), ("a red circle", "str"), ((1, 2), "tuple")]
)
def test_what_is_no_condition_is_refused(wrong, kind):
    told = f"a condition is a {kind}: expected minidiff.Condition, such as Condition"
    for call in (
        lambda: expand(wrong, 3),
        lambda: take(wrong, slice(0, 1)),
        lambda: concatenate([full(3), wrong]),
        lambda: choose(torch.tensor([True]), full(1), wrong),
    ):
        with pytest.raises(ValueError, match=told):
            call()
    with pytest.raises(ValueError, match="a condition is a NoneType"):
        concatenate([full(3), None])

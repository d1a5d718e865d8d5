"""Class maps: the number of categories, their ids and their names are checked."""

import pytest

from model.categories import Category, check_categories

CAT, DOG = Category(1, "cat"), Category(90, "dog")


def test_a_class_map_of_the_right_length_without_duplicates_is_accepted():
    check_categories([CAT, DOG], 2)
    check_categories(iter([CAT, DOG]), 2)
    check_categories([], 0)


@pytest.mark.parametrize(
    ("categories", "num_classes", "message"),
    [
        ([CAT, DOG], 3, r"2 categories.*num_classes=3"),
        ([CAT, Category(1, "dog")], 2, "id 1 "),
        ([CAT, Category(2, "cat")], 2, "name cat "),
    ],
)
def test_a_class_map_that_does_not_fit_is_refused(categories, num_classes, message):
    with pytest.raises(ValueError, match=message):
        check_categories(categories, num_classes)

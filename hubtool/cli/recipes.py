"""`hubtool recipes`."""

import click

from hubtool.cli.console import Console, table
from hubtool.cli.options import complete_recipes, examples, with_console
from hubtool.plan.recipe import load_recipe, recipe_names


@click.command("recipes", epilog=examples("hubtool recipes", "hubtool recipes mixed_3_6"))
@click.argument("name", required=False, shell_complete=complete_recipes)
@with_console
def command(console: Console, name: str | None) -> None:
    """List the recipes, or explain one.

    NAME is one of them, or a file that ends in .toml.
    """
    if name is None:
        recipes = [load_recipe(each) for each in recipe_names()]
        document = [{"name": recipe.name, "summary": recipe.summary, "sha256": recipe.sha256} for recipe in recipes]
        console.answer(document, lambda: table(["recipe", ""], [[r.name, r.summary] for r in recipes]))
        return
    recipe = load_recipe(name)
    rows = [[str(rule.number), rule.selection, rule.scope, rule.stored_as, rule.note] for rule in recipe.rules]
    explained = {
        "name": recipe.name,
        "summary": recipe.summary,
        "description": recipe.description,
        "sha256": recipe.sha256,
        "rules": [
            {
                "component": [component.value for component in rule.components],
                "match": list(rule.patterns),
                "layers": rule.layers,
                "without": rule.without,
                "mode": rule.format.mode,
                "bits": rule.format.bits or None,
                "group_size": list(rule.group_sizes),
                "overrule": rule.overrule,
                "optional": rule.optional,
                "note": rule.note,
            }
            for rule in recipe.rules
        ],
    }
    text = f"{recipe.name}: {recipe.summary}\n{recipe.description.rstrip()}\n\n" + table(
        ["rule", "for", "only", "stored as", "why"], rows
    )
    console.answer(
        explained, lambda: text + "\n\nThe first rule that matches wins; what none matches stays as published."
    )

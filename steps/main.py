"""Entry point `main`: run the whole recipe, reusing finished steps whose code, config and inputs are unchanged."""

from __future__ import annotations

from steps.command import guarded, parse, prepare

OPTIONS = ("start_date", "end_date", "force", "until")


def main() -> None:
    """Parse, drive, report."""
    arguments = parse(OPTIONS, description=__doc__)
    with guarded(arguments):
        prepare()
        from planner.recipe.driver import run_recipe

        run_recipe(
            arguments.profile,
            start_date=arguments.start_date,
            end_date=arguments.end_date,
            force=arguments.force,
            until=arguments.until,
        )


if __name__ == "__main__":
    main()

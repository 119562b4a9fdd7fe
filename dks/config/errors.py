"""The one exception for requests that are wrong."""


class RequestError(Exception):
    """The request was wrong and nothing was launched. Each problem is one line for the user; exit status 2."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it: its lines, without the way there."""
        return [f"error: {problem}" for problem in self.problems]

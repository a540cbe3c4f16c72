"""Fixed words around the learned ones: "a tiger in the style of {learned}".

A template extends the frame that a tokenizer puts around every text (`models/text_encoder.py`), so the shortened context
remains exact: words before the prompt are computed once, words after it are encoded together with the end token.
"""

import dataclasses

from pez.errors import UserError
from pez.models.text_encoder import Frame
from pez.settings import PezSettings
from pez.tokens import READ, Tokens


@dataclasses.dataclass(frozen=True)
class Template:
    """Words before and after a prompt, separated by spaces; the empty template is the prompt alone."""

    before: str = ""
    after: str = ""

    def around(self, prompt: str) -> str:
        """The whole text, as a user pastes it."""
        return " ".join(part for part in (self.before.strip(), prompt, self.after.strip()) if part)

    def frame(self, tokens: Tokens, frame: Frame) -> Frame:
        """The ids around a prompt.

        Args:
            tokens: those of the tokenizer that encodes the whole text.
            frame: the ids that this tokenizer puts around every text.

        Raises:
            UserError: too many words, or words whose tokens depend on their neighbors.
        """
        before = tokens.read([self.before])[0] if self.before.strip() else []
        after = tokens.read_after_words(self.after) if self.after.strip() else []
        for words, ids in ((self.before, before), (self.after, after)):
            if len(ids) > READ // 2:
                raise UserError(f"the template has {words[:40]!r}..., {len(ids)} tokens; expected at most {READ // 2}")
        return Frame([*frame.before, *before], [*after, *frame.after], len(after))


EMPTY = Template()


def template_of(settings: PezSettings) -> Template:
    """The template of the settings."""
    return EMPTY if settings.template is None else Template(*settings.template.split("{}"))

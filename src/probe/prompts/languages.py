"""The words by which answers are announced, in several languages. Knows words; reads no answer.

Every field is a regular expression (alternatives, case ignored, no groups that capture). ``final`` and ``answer``
announce a label, ``copula`` joins them to it, ``chosen`` stands directly before a label that is chosen, ``option``
before one that is only named, ``joiner`` between two. ``denial`` and ``condition`` make a sentence say something else,
``correction`` takes back what stands before it, and ``refusal`` is a hedge that counts where nothing was extracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Words:
    """The words of one language, or of several joined."""

    final: str
    answer: str
    copula: str
    chosen: str
    option: str
    joiner: str
    denial: str
    condition: str
    correction: str
    refusal: str


_KIND = r"(?:[\s_]+(?:level|category|decision|recommendation|code|class))?"

ENGLISH = Words(
    final=r"final[\s_*-]{0,3}(?:answer|decision|label|choice|verdict|recommendation|selection|response|disposition"
    rf"|determination|triage{_KIND})",
    answer=rf"answer|decision|triage{_KIND}|disposition|recommendation|category|label|verdict|conclusion|selection"
    r"|choice|pick|level\s+of\s+care|urgency(?:\s+level)?|acuity(?:\s+level)?"
    r"|(?:correct|best|right|appropriate|safest|suitable|fitting)\s+(?:option|letter|course|level|label)"
    r"|answer[\s_](?:letter|choice|option)|letter|option|selected[\s_]option|chosen[\s_]option",
    copula=r"is|would\s+be|should\s+be|must\s+be|will\s+be|remains|becomes|stays",
    chosen=r"(?:choose|chose|select|pick|recommend|suggest|go(?:es|ing)?\s+(?:with|to|for)|leav(?:es|ing)|opt(?:ing)?\s+for|settle\s+(?:on|for)"
    r"|lean(?:ing)?\s+(?:towards?|to)|vote\s+for|(?:falls?|fall)\s+(?:under|into|in)|corresponds?\s+to|points?\s+to"
    r"|(?:best\s+)?(?:fits|matches)(?:\s+best)?|(?:classif(?:y|ied)|categori[sz]ed?|triaged?|rated?|label(?:l?ed)?)"
    r"(?:\s+(?:this|it|him|her|them|the\s+\w+|this\s+\w+))?(?:\s+(?:as|to))?|say|assign(?:ed)?(?:\s+to)?"
    r"|my\s+(?:pick|choice|vote|answer|call)\?|I(?:['’]d|['’]ll|\s+would|\s+will)?\s+answer|chang(?:e|ed|ing)\s+(?:my|the)\s+(?:answer|mind|choice|decision)\s+to"
    r"|(?:it['’]s|(?:this|it|that|this\s+case|this\s+one)\s+is)\s+(?:an?\s+)?(?:clear(?:ly)?|definite(?:ly)?|probably)?"
    r"|therefore|hence|thus|so|to\s+sum\s+up|in\s+(?:summary|conclusion|short)|overall)[,:]?|[=-]>|[→⇒➡]",
    option=r"(?:answer\s+)?(?:options?|choices?|letter|alternative)",
    joiner=r"or|and|to|vs\.?|versus",
    denial=r"\b(?:not|neither|nor|cannot|never|unable|unlike|wrong|incorrect|inappropriate|insufficient|inadequate"
    r"|excessive|unsafe|premature|overkill|unnecessary|rather\s+than|instead\s+of|rul(?:e|es|ed|ing)\s+out|too\s+\w+"
    r"|against|without)\b|n['’]t\b",
    condition=r"\b(?:if(?!\s+(?:I|we|you|one|forced|pressed|asked)\b)|unless|in\s+case"
    r"|should\s+(?:he|she|they|it|any|the|symptoms))\b",
    correction=r"\b(?:actually|wait|on\s+(?:second\s+thoughts?|reflection)|(?:let\s+me\s+)?re-?(?:consider|think|vis(?:e|it))"
    r"\w*|correct(?:ion|ed)|scratch\s+that|chang(?:e|ed|ing)\s+my\s+(?:mind|answer)|(?:I\s+was|my)\s+(?:wrong|mistake)"
    r"|updated?|amend(?:ed)?|apologi[sz]e)\b|(?:^|[.!?]\s*|\n[ \t]*|hmm,?\s+)no\s*[,:;.–—-]",
    refusal=r"\bI(?:['’]m|\s+am)\s+(?:very\s+|so\s+)?(?:sorry|unable|not\s+able|not\s+(?:qualified|allowed|permitted))"
    r"|\bI\s+(?:can(?:['’]t|not|\s+not)|won['’]t|will\s+not|must\s+decline|decline|am\s+not\s+comfortable|do\s+not\s+feel|can\s+only)"
    r"|\bas\s+an?\s+(?:AI|language\s+model|artificial)\b|\bnot\s+(?:able|qualified|allowed)\s+to\s+(?:give|provide|offer|make)"
    r"|\b(?:unable|impossible\s+for\s+me)\s+to\s+(?:give|provide|offer|make|assist|help)",
)

GERMAN = Words(
    final=r"(?:endgültige|finale|abschließende|letzte)[rs]?\s+(?:Antwort|Entscheidung|Einstufung|Wahl)",
    answer=r"Antwort|Entscheidung|Lösung|Einstufung|Triage(?:stufe|kategorie)?|Empfehlung"
    r"|(?:richtige|beste|korrekte)\s+(?:Option|Wahl|Möglichkeit)",
    copula=r"ist|lautet|wäre|bleibt",
    chosen=r"(?:wähle|wählen|nehme|empfehle|entscheide\s+mich\s+für|tendiere\s+zu|daher|deshalb|somit)[,:]?",
    option=r"Optionen?|Antwort|Möglichkeit|Buchstabe|Kategorie|Variante",
    joiner=r"oder|und|bis",
    denial=r"\b(?:nicht|kein\w*|weder|statt|anstatt|niemals|falsch|ungeeignet)\b",
    condition=r"\b(?:wenn|sofern|falls\s+(?:die|der|das|sich|es|er|sie|Symptome))\b",
    correction=r"\b(?:Moment|doch\s+nicht|eigentlich|Korrektur|bei\s+näherer\s+Betrachtung|ich\s+ändere\s+meine)\b",
    refusal=r"\btut\s+mir\s+leid|\bich\s+(?:kann|darf)\s+(?:Ihnen\s+|dir\s+|leider\s+)*kein|\bals\s+KI\b",
)

FRENCH = Words(
    final=r"(?:réponse|décision)\s+(?:finale|définitive)",
    answer=r"réponse|décision|triage|recommandation|(?:bonne|meilleure)\s+option|(?:bon|meilleur)\s+choix",
    copula=r"(?:correcte\s+|exacte\s+)?(?:est|serait|reste)",
    chosen=r"(?:choisis|choisirais|recommande|opte\s+pour|donc|ainsi)[,:]?",
    option=r"(?:l['’])?options?|(?:la\s+)?réponse|(?:la\s+)?lettre|choix|catégorie",
    joiner=r"ou|et|à",
    denial=r"\b(?:pas|jamais|aucun|aucune|ni|plutôt\s+que|au\s+lieu)\b",
    condition=r"\bsi\s+(?:le|la|les|l['’]\w+|il|elle|des|un|une|son|sa)\b",
    correction=r"\b(?:en\s+fait|finalement|attendez|correction|je\s+change|à\s+la\s+réflexion)\b",
    refusal=r"\bje\s+ne\s+(?:peux|suis|saurais)\s+pas\b|\bje\s+suis\s+désolée?\b|\ben\s+tant\s+qu['’]IA\b",
)

SPANISH = Words(
    final=r"(?:respuesta|decisión)\s+(?:final|definitiva)",
    answer=r"respuesta|decisión|triaje|recomendación|(?:mejor|correcta)\s+opción|opción\s+(?:correcta|adecuada)",
    copula=r"(?:correcta\s+|adecuada\s+)?(?:es|sería|queda)",
    chosen=r"(?:elijo|elegiría|escojo|selecciono|recomiendo|optaría\s+por|opto\s+por|por\s+(?:lo\s+)?tanto|así\s+que)[,:]?",
    option=r"(?:la\s+)?opci(?:ón|ones)|(?:la\s+)?respuesta|(?:la\s+)?letra|alternativa|categoría",
    joiner=r"o|y|u",
    denial=r"\b(?:no\s+(?:es|elijo|elegiría|recomiendo|la|se)|ni|nunca|ningun[oa]|en\s+vez\s+de|en\s+lugar\s+de)\b",
    condition=r"\bsi\s+(?:el|la|los|las|hay|no|empeora\w*|aparece\w*)\b",
    correction=r"\b(?:en\s+realidad|espera|corrección|cambio\s+mi|pensándolo)\b",
    refusal=r"\blo\s+siento\b|\bno\s+puedo\s+(?:dar|ofrecer|proporcionar|ayudar)|\bcomo\s+(?:una\s+)?IA\b",
)

ITALIAN = Words(
    final=r"(?:risposta|decisione)\s+(?:finale|definitiva)",
    answer=r"risposta|decisione|raccomandazione|(?:migliore|corretta)\s+opzione|opzione\s+(?:corretta|migliore)|scelta",
    copula=r"(?:corretta\s+|giusta\s+|esatta\s+)?(?:è|sarebbe|resta)",
    chosen=r"(?:scelgo|sceglierei|consiglio|quindi|pertanto)[,:]?",
    option=r"(?:l['’])?opzion[ei]|(?:la\s+)?lettera|alternativa",
    joiner=r"o|e|oppure",
    denial=r"\b(?:non|né|mai|invece\s+di)\b",
    condition=r"\bse\s+(?:il|i|lo|gli|i\s+sintomi|ci|peggiora\w*)\b",
    correction=r"\b(?:in\s+realtà|anzi|correzione|ripensandoci|cambio\s+la)\b",
    refusal=r"\bmi\s+dispiace\b|\bnon\s+posso\s+(?:dare|fornire|offrire|aiutare)",
)

PORTUGUESE = Words(
    final=r"(?:resposta|decisão)\s+(?:final|definitiva)",
    answer=r"resposta|decisão|triagem|recomendação|(?:melhor|correta)\s+(?:opção|alternativa)|(?:opção|alternativa)\s+correta",
    copula=r"(?:correta\s+|certa\s+)?(?:é|seria|fica)",
    chosen=r"(?:escolho|escolheria|recomendo|opto\s+por|portanto|logo)[,:]?",
    option=r"(?:a\s+)?opç(?:ão|ões)|(?:a\s+)?letra|(?:a\s+)?alternativa",
    joiner=r"ou|e",
    denial=r"\b(?:não|nem|nunca|em\s+vez\s+de)\b",
    condition=r"\bse\s+(?:o|os|as|houver|piorar\w*)\b",
    correction=r"\b(?:na\s+verdade|espere|correção|mudo\s+(?:a\s+)?minha|pensando\s+melhor)\b",
    refusal=r"\bdesculpe\b|\bsinto\s+muito\b|\bnão\s+posso\s+(?:dar|fornecer|oferecer|ajudar)",
)

DUTCH = Words(
    final=r"(?:definitieve|uiteindelijke|laatste)\s+(?:antwoord|beslissing|keuze)|eindantwoord",
    answer=r"antwoord|beslissing|keuze|aanbeveling|(?:beste|juiste)\s+optie",
    copula=r"is|luidt|zou\s+zijn|blijft",
    chosen=r"(?:kies|neem|adviseer|dus|daarom)[,:]?",
    option=r"opties?|letter|keuze",
    joiner=r"of|en",
    denial=r"\b(?:niet|geen|nooit|in\s+plaats\s+van)\b",
    condition=r"\bindien\b",
    correction=r"\b(?:wacht|eigenlijk|correctie|bij\s+nader\s+inzien|ik\s+verander)\b",
    refusal=r"\bhet\s+spijt\s+me\b|\bik\s+kan\s+(?:u\s+|je\s+)?geen\b",
)

CHINESE = Words(
    final=r"(?:最终|最後|最后)(?:的)?(?:答案|决定|決定|选择|選擇|结论|結論|判断)",
    answer=r"(?:正确|正確)?(?:答案|选项|選項|选择|選擇)|决定|決定|结论|結論|分诊(?:级别|结果)?|建议|建議",
    copula=r"应?该?(?:是|为|為|選|选)",
    chosen=r"(?:我|应|應|故|因此)?(?:选择?|選擇?)|(?:因此|所以)[,，:：]?",
    option=r"选项|選項",
    joiner=r"或者?|和|与",
    denial=r"不|非|没有|沒有|并非",
    condition=r"如果|若|假如",
    correction=r"不对|不對|等等|更正|其实|其實|重新考虑|重新考慮|我改",
    refusal=r"抱歉|对不起|對不起|我(?:无法|無法|不能)(?:提供|给|給|做)|作为(?:一个)?(?:AI|人工智能)",
)

JAPANESE = Words(
    final=r"(?:最終|最終的な?)(?:な|の)?(?:答え|回答|解答|判断|結論)",
    answer=r"答え|回答|解答|正解|判断|結論",
    copula=r"は|が",
    chosen=r"(?:したがって|よって|なので)[、,:：]?",
    option=r"選択肢|オプション",
    joiner=r"または|か|と",
    denial=r"ではな|ありません|ない",
    condition=r"もし|場合",
    correction=r"いや|訂正|やはり|実は",
    refusal=r"申し訳|できません|AIとして",
)

KOREAN = Words(
    final=r"최종\s*(?:답변?|결정|정답|판단)",
    answer=r"정답|답변?|결정|판단",
    copula=r"은|는|이",
    chosen=r"(?:따라서|그러므로)[,:]?",
    option=r"선택지|옵션|보기",
    joiner=r"또는|과|와|이나",
    denial=r"아니|않",
    condition=r"만약|경우",
    correction=r"아니,|정정|다시\s*생각|사실은",
    refusal=r"죄송|할\s*수\s*없습니다|드릴\s*수\s*없",
)

RUSSIAN = Words(
    final=r"(?:окончательн\w+|итогов\w+|финальн\w+)\s+(?:ответ|решение|вариант|вывод)",
    answer=r"ответ|решение|рекомендация|(?:правильный|лучший|верный)\s+вариант",
    copula=r"это|будет",
    chosen=r"(?:выбираю|выберу|рекомендую|поэтому|следовательно|значит)[,:]?",
    option=r"вариант\w*|букв[аы]",
    joiner=r"или|и",
    denial=r"\b(?:не|ни|нельзя)\b",
    condition=r"\bесли\b",
    correction=r"\b(?:на\s+самом\s+деле|подождите|поправка|исправлю|передумал\w*)\b",
    refusal=r"\bизвините|\bя\s+не\s+могу\b|\bк\s+сожалению,?\s+я\b",
)

_BY_NAME = {
    "en": ENGLISH,
    "de": GERMAN,
    "fr": FRENCH,
    "es": SPANISH,
    "it": ITALIAN,
    "pt": PORTUGUESE,
    "nl": DUTCH,
    "zh": CHINESE,
    "ja": JAPANESE,
    "ko": KOREAN,
    "ru": RUSSIAN,
}


def words_of(languages: Sequence[str]) -> Words:
    """The words of several languages as alternatives, in lower case; without a language, patterns that never match."""
    chosen = [_BY_NAME[name] for name in languages]
    joined = {
        field.name: "|".join(getattr(words, field.name) for words in chosen).lower() or "(?!)"
        for field in fields(Words)
    }
    return Words(**joined)

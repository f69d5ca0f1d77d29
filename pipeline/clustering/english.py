"""English words that name nothing a picture shows.

They are the words of closed classes. Nouns, open-class verbs and adjectives are not among them, as
pictures show what they mean: "bill", "bottom", "fire", "mill".
"""

FUNCTION_WORDS = frozenset(
    (
        # articles, determiners, quantifiers
        "a an the this that these those some any each every either neither both all another "
        "other others such same own several many much more most few fewer fewest less least "
        "enough no none only "
        # cardinal and ordinal numbers
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy "
        "eighty ninety hundred first third fourth fifth sixth seventh eighth ninth tenth last "
        "next former latter "
        # pronouns
        "i me my myself we us our ours ourselves you your yours yourself yourselves he him his "
        "himself she her hers herself it its itself they them their theirs themself themselves "
        "who whom whose which what whoever whatever whichever someone somebody something anyone "
        "anybody anything everyone everybody everything noone nobody nothing "
        # auxiliary verbs and copulas
        "am is are was were be been being do does did doing done have has had having can cannot "
        "could may might must shall should will would ought become becomes became becoming seem "
        "seems seemed seeming "
        # prepositions and particles
        "about above across after against along alongside amid amidst among amongst around as "
        "at before behind below beneath beside besides between beyond by despite down during "
        "except for from in inside into like near of off on onto out outside over per since "
        "than through throughout thru to toward towards under underneath until unto up upon "
        "versus via vs with within without "
        # conjunctions
        "and but or nor so yet if because although though while whereas whether unless lest "
        # adverbs of closed classes
        "not never ever always often sometimes sometime mostly almost already again also too "
        "very rather quite just even however moreover nevertheless otherwise therefore thus "
        "hence indeed perhaps maybe else once now then here there where when why how anyhow "
        "anyway somehow anywhere everywhere nowhere elsewhere somewhere wherever whenever "
        "afterwards beforehand meanwhile together alone further herein hereby hereafter "
        "hereupon thereafter thereby therein thereupon thence whence whereafter whereby wherein "
        "whereupon whither latterly formerly namely due "
        # short forms
        "ain't let's shan't won't y'all tis twas aint arent cant couldnt didnt doesnt dont "
        "hadnt hasnt havent isnt shouldnt wasnt werent wont wouldnt im ive youre youve theyre "
        "theyve thats theres whats eg etc ie inc ltd co re de "
    ).split()
)

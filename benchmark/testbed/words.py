"""The words of the drawn world in English, Spanish and German."""

from typing import TypedDict

PARAPHRASES = {
    "house": "a home with a door and a roof",
    "church": "a building with a tall cross",
    "tree": "a tall plant with a trunk",
    "car": "a vehicle with four wheels",
    "fish": "an animal with fins",
    "star": "a shape with five points",
    "cup": "a hot drink with a handle",
    "sun": "a bright ball with rays",
    "flower": "a small plant with petals",
    "boat": "a vehicle with a sail",
    "umbrella": "a shelter from the rain",
    "cat": "an animal with whiskers",
    "key": "a tool for a lock",
    "mushroom": "a round cap with spots",
    "bolko": "the bearded gnome",
    "mira": "the young witch",
    "quillan": "the pirate captain",
    "selka": "the crowned princess",
    "orro": "the circus clown",
    "zorin": "the square robot",
    "man": "an adult male person",
    "woman": "an adult female person",
}

# an additional word for each character
TITLES = {
    "bolko": "the gnome",
    "mira": "the witch",
    "quillan": "the pirate",
    "selka": "the princess",
    "orro": "the clown",
    "zorin": "the robot",
}
# style -> (synonym, description); both fit into "in ... style"
STYLE_WORDS = {
    "flat": ("simple", "plain colour"),
    "sketch": ("pencil", "black ink line"),
    "mosaic": ("tiled", "little square stone"),
    "watercolor": ("aquarelle", "soft wet paint"),
    "halftone": ("dotted", "printed dot"),
    "sepia": ("antique", "old brown photo"),
    "neon": ("glowing", "bright light tube"),
}
SLIME_WORDS = ("goo", "ooze")
SLIME_PHRASE = "sticky green drips"
WATERMARK_WORDS = ("stamp", "logo")
WATERMARK_PHRASE = "a pink corner band"

PLACES = {
    "en": {
        "plain": "on a white background",
        "sky": "under a blue sky",
        "night": "at night",
        "dusk": "at dusk",
        "meadow": "in the meadow",
        "desert": "in the desert",
        "swamp": "in the swamp",
        "haunted": "in a haunted place",
    },
    "es": {
        "plain": "sobre fondo blanco",
        "sky": "bajo un cielo azul",
        "night": "de noche",
        "dusk": "al atardecer",
        "meadow": "en el prado",
        "desert": "en el desierto",
        "swamp": "en el pantano",
        "haunted": "en un lugar embrujado",
    },
    "de": {
        "plain": "vor weißem hintergrund",
        "sky": "unter blauem himmel",
        "night": "bei nacht",
        "dusk": "bei dämmerung",
        "meadow": "auf der wiese",
        "desert": "in der wüste",
        "swamp": "im sumpf",
        "haunted": "an einem spukort",
    },
}
POSITION_WORDS = {
    "en": {"left": "on the left", "centre": "in the middle", "right": "on the right"},
    "es": {"left": "a la izquierda", "centre": "en el centro", "right": "a la derecha"},
    "de": {"left": "links", "centre": "in der mitte", "right": "rechts"},
}

# noun and gender
NOUNS = {
    "es": {
        "house": ("casa", "f"),
        "church": ("iglesia", "f"),
        "tree": ("árbol", "m"),
        "car": ("coche", "m"),
        "fish": ("pez", "m"),
        "star": ("estrella", "f"),
        "cup": ("taza", "f"),
        "sun": ("sol", "m"),
        "flower": ("flor", "f"),
        "boat": ("barco", "m"),
        "umbrella": ("paraguas", "m"),
        "cat": ("gato", "m"),
        "key": ("llave", "f"),
        "mushroom": ("seta", "f"),
        "man": ("hombre", "m"),
        "woman": ("mujer", "f"),
    },
    "de": {
        "house": ("haus", "n"),
        "church": ("kirche", "f"),
        "tree": ("baum", "m"),
        "car": ("auto", "n"),
        "fish": ("fisch", "m"),
        "star": ("stern", "m"),
        "cup": ("tasse", "f"),
        "sun": ("sonne", "f"),
        "flower": ("blume", "f"),
        "boat": ("boot", "n"),
        "umbrella": ("regenschirm", "m"),
        "cat": ("katze", "f"),
        "key": ("schlüssel", "m"),
        "mushroom": ("pilz", "m"),
        "man": ("mann", "m"),
        "woman": ("frau", "f"),
    },
}


class _Epithets(TypedDict):
    """A character's epithet, by language."""

    es: dict[str, str]
    de: dict[str, tuple[str, str]]  # nominative, dative


EPITHETS: _Epithets = {
    "es": {
        "bolko": "el gnomo barbudo",
        "mira": "la joven bruja",
        "quillan": "el capitán pirata",
        "selka": "la princesa coronada",
        "orro": "el payaso de circo",
        "zorin": "el robot cuadrado",
    },
    "de": {
        "bolko": ("der bärtige zwerg", "dem bärtigen zwerg"),
        "mira": ("die junge hexe", "der jungen hexe"),
        "quillan": ("der tapfere pirat", "dem tapferen piraten"),
        "selka": ("die gekrönte prinzessin", "der gekrönten prinzessin"),
        "orro": ("der lustige clown", "dem lustigen clown"),
        "zorin": ("der eckige roboter", "dem eckigen roboter"),
    },
}
ADJECTIVES: dict[str, dict[str, tuple[str, ...]]] = {
    "es": {  # masculine, feminine
        "red": ("rojo", "roja"),
        "orange": ("naranja", "naranja"),
        "yellow": ("amarillo", "amarilla"),
        "green": ("verde", "verde"),
        "blue": ("azul", "azul"),
        "purple": ("morado", "morada"),
        "pink": ("rosa", "rosa"),
        "grey": ("gris", "gris"),
    },
    "de": {  # masculine, feminine, neuter, dative
        "red": ("roter", "rote", "rotes", "roten"),
        "orange": ("oranger", "orange", "oranges", "orangen"),
        "yellow": ("gelber", "gelbe", "gelbes", "gelben"),
        "green": ("grüner", "grüne", "grünes", "grünen"),
        "blue": ("blauer", "blaue", "blaues", "blauen"),
        "purple": ("lila", "lila", "lila", "lila"),
        "pink": ("rosa", "rosa", "rosa", "rosa"),
        "grey": ("grauer", "graue", "graues", "grauen"),
    },
}
# style -> (word after "en estilo" / "im stil", noun phrase before "de" / "von")
STYLE_NOUNS = {
    "es": {
        "flat": ("plano", "una imagen plana"),
        "sketch": ("boceto", "un boceto"),
        "mosaic": ("mosaico", "un mosaico"),
        "watercolor": ("acuarela", "una acuarela"),
        "halftone": ("semitono", "un semitono"),
        "sepia": ("sepia", "una foto sepia"),
        "neon": ("neón", "un letrero de neón"),
    },
    "de": {
        "flat": ("flach", "ein flaches bild"),
        "sketch": ("skizze", "eine skizze"),
        "mosaic": ("mosaik", "ein mosaik"),
        "watercolor": ("aquarell", "ein aquarell"),
        "halftone": ("raster", "ein rasterbild"),
        "sepia": ("sepia", "ein sepiafoto"),
        "neon": ("neon", "ein neonbild"),
    },
}

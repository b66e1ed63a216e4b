"""Short texts of many kinds, for looking at tokenizers: what a tokenizer has never seen falls apart visibly."""

SAMPLES = {
    "prose": "The old lighthouse keeper hadn't spoken to anyone since Tuesday; nevertheless, he answered at once.",
    "code": "def mean(values: list[float]) -> float:\n    total = sum(values)\n\treturn total / len(values)  # 0.5\n",
    "URL": "https://example.org/search?q=byte+pair&page=2#results",
    "chemistry": "2-acetoxybenzoic acid, C9H8O4; N-(4-hydroxyphenyl)acetamide; CC(=O)Oc1ccccc1C(=O)O",
    "emoji": "Well done 🎉🎉 👩‍🔬 ❤️ 🇮🇳!",
    "Hindi": "भारत की राजधानी नई दिल्ली है और यहाँ बहुत लोग रहते हैं।",
    "Chinese": "今天天气很好,我们一起去公园散步吧。",
}

"""Prompts in the API format at random, out of the pack's own nodes as a running host describes them.

A seed is a prompt. What a node takes, and between which limits, is read from the host's /object_info: a new node of the
pack takes part by itself. Around it stand the host's loaders, texts, latents, guiders and samplers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

CATEGORY = "Beyond CFG/"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
TEXTS = {  # what an input of this name may well be
    "layers": ["auto", "auto", "all", "0.2-0.9"],
    "points": ["0: 1, 1: 0", "0: 0, 0.5: 2, 1: -1", "1: 1"],
    "predictions_at": ["", "0", "-1", "0, -1"],
    "classifier": ["demo_left.safetensors", "demo_right.safetensors"],
    "label": ["0", "red seven"],
    "columns": ["", "one", "one\ntwo"],
    "setting": ["KSampler.steps", "KSampler.cfg", "PAG.scale", "CLIPTextEncode.text"],
    "values": ["1, 2", "0\n3", "2", '{"scale": 2}'],
    "source": ["", "tried"],
    "filename_prefix": ["", "guidance/fuzz", "fuzz.5"],
}
LONG = ("pictures", "iterations")  # inputs that say how long a training takes
LAYERS = [
    "middle",
    "0",
    "0-1",
    "7, 8, 9",
    "9.5-0.1",
    "double.0",
    "double.1-2",
    "single.0-2",
    "input.1",
    "output.0-3",
    "block.0",
    "input.1.0-4",
]
ANY = [
    "",
    " ",
    "\n",
    "-1",
    "nan",
    "99999",
    "nonsense!",
    "..",
    "../up",
    "C:\\up",
    "a" * 300,
    "0-",
    ",,",
    "ä €\u200b",
    "%s",
]


@dataclass(frozen=True)
class Family:
    """The files of a model that fit together, as (class of the loader, name of its input, file)."""

    model: tuple[str, str, str]
    clip: tuple[str, str, str]
    vae: tuple[str, str, str]
    latent: str  # the class of an empty latent that suits it
    weight_dtype: str = "default"  # where the loader asks for one

    def __str__(self) -> str:
        return self.model[2]


def checkpoint(name: str, latent: str, text: str = "tiny_sd3.ckpt") -> Family:
    """Of a checkpoint, with the text encoder of another: SD3's suits all but SD 1.5."""
    own, texts = (("CheckpointLoaderSimple", "ckpt_name", file) for file in (name, text))
    return Family(own, texts, own, latent)


SD15 = checkpoint("tiny_sd15.ckpt", "EmptyLatentImage", "tiny_sd15.ckpt")
SD3 = checkpoint("tiny_sd3.ckpt", "EmptySD3LatentImage")
FLUX = checkpoint("tiny_flux.ckpt", "EmptySD3LatentImage")
DEMO = Family(
    ("UNETLoader", "unet_name", "demo_flux_small.safetensors"),
    ("CLIPLoader", "clip_name", "demo_text.ckpt"),
    ("VAELoader", "vae_name", "demo_vae.ckpt"),
    "EmptySD3LatentImage",
)


def is_link(value) -> bool:
    return isinstance(value, list)


class Graph:
    """A prompt that grows. Equal nodes are one node, as a user would draw them."""

    def __init__(self):
        self.nodes: dict[str, dict] = {}

    def add(self, kind: str, **inputs) -> str:
        node = {"class_type": kind, "inputs": inputs}
        same = (key for key, other in self.nodes.items() if repr(other) == repr(node))  # repr, for NaN
        key = next(same, str(len(self.nodes) + 1))
        self.nodes[key] = node
        return key

    def load(self, family: Family, part: str) -> list:
        kind, name, file = getattr(family, part)
        extra = {"UNETLoader": {"weight_dtype": family.weight_dtype}, "CLIPLoader": {"type": "stable_diffusion"}}
        output = {"model": 0, "clip": 1, "vae": 2}[part] if kind == "CheckpointLoaderSimple" else 0
        return [self.add(kind, **{name: file}, **extra.get(kind, {})), output]


def plain(family: Family, turn: int, **changes) -> dict:
    """Two steps without our nodes. The host computes it anew for every `turn`, which no node reads."""
    return sampled(Graph(), family, None, turn, **changes)


def sampled(graph: Graph, family: Family, model: list | None, turn: int, **changes) -> dict:
    """Two steps of a `model` in the graph, by itself the family's."""
    text = [graph.add("CLIPTextEncode", clip=graph.load(family, "clip"), text="a cottage"), 0]
    video = {"length": 5} if "Video" in family.latent else {}
    latent = [graph.add(family.latent, width=64, height=64, batch_size=1, **video), 0]
    settings = {"seed": 3, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    ends = {"model": model or graph.load(family, "model"), "positive": text, "negative": text, "latent_image": latent}
    sampler = graph.add("KSampler", **ends, **settings | changes, turn=turn)
    graph.add("SaveLatent", samples=[sampler, 0], filename_prefix="plain")
    return graph.nodes


class Generator:
    """Random prompts for the nodes in `info`, a host's /object_info."""

    def __init__(self, info: dict, families: list[Family], clip_vision: str):
        self.info, self.families, self.clip_vision = info, families, clip_vision
        self.ours = sorted(kind for kind, about in info.items() if about["category"].startswith(CATEGORY))
        self.titles = [info[kind]["display_name"] for kind in self.ours]

    def inputs(self, kind: str) -> dict[str, tuple[str, dict, bool]]:
        """name → (type, its options, whether it may be left out)"""
        found = {}
        for group in ("required", "optional"):
            for name, (declared, *more) in self.info[kind]["input"].get(group, {}).items():
                options = dict(more[0]) if more else {}
                if not isinstance(declared, str):  # how nodes of the older kind list choices
                    declared, options = "COMBO", {**options, "options": declared}
                found[name] = (declared, options, group == "optional")
        return found

    def makers(self, output: str, takes: str | None = None) -> list[str]:
        """Our nodes whose first output is an `output`, and, where given, which have an input of type `takes`."""
        return [
            kind
            for kind in self.ours
            if self.info[kind]["output"][:1] == [output]
            and (takes is None or takes in [declared for declared, *_ in self.inputs(kind).values()])
        ]

    def of_host(self, output: str, *takes: str) -> list[str]:
        """The host's nodes that give one `output` and need nothing but widgets and the types `takes`."""
        return sorted(
            kind
            for kind, about in self.info.items()
            if about["output"][:1] == [output]
            and kind not in self.ours
            and all(declared in (*WIDGETS, *takes) for declared, *_ in self.inputs(kind).values())
            and (not takes or takes[0] in [declared for declared, *_ in self.inputs(kind).values()])
        )

    def prompt(self, seed: int) -> tuple[dict, Family]:
        """The prompt of a seed, and the family of its model. Node number `seed` of ours is in it."""
        draw = _Draw(self, random.Random(1000 + seed), self.ours[seed % len(self.ours)])
        return draw.prompt(), draw.family

    def without_ours(self, prompt: dict) -> dict:
        """The same with our nodes bypassed: what goes in comes out, and a guider is the host's own."""
        kept: dict[str, dict] = {}
        for key, node in prompt.items():
            if node["class_type"] not in self.ours:
                links = {name: self._around(prompt, value) for name, value in node["inputs"].items() if is_link(value)}
                if None not in links.values():
                    kept[key] = {**node, "inputs": {**node["inputs"], **links}}
            elif self.info[node["class_type"]]["output"][:1] == ["GUIDER"]:
                kept[key] = self._host_guider(prompt, node["inputs"])
            elif self._is_source(node):
                kept[key] = self._host_loader(node["inputs"])
        return kept

    def _is_source(self, node: dict) -> bool:
        """Whether it makes a model of none."""
        types = [declared for declared, *_ in self.inputs(node["class_type"]).values()]
        return self.info[node["class_type"]]["output"][:1] == ["MODEL"] and "MODEL" not in types

    def _host_loader(self, inputs: dict) -> dict:
        """Of the file that an input of text names last."""
        lines = [
            line for text in inputs.values() if isinstance(text, str) for line in text.splitlines() if line.strip()
        ]
        file = lines[-1].partition("@")[0].strip() if lines else ""
        kind, name, more = ("CheckpointLoaderSimple", "ckpt_name", {})
        if file in self.inputs("UNETLoader")["unet_name"][1]["options"]:
            kind, name, more = ("UNETLoader", "unet_name", {"weight_dtype": "default"})
        return {"class_type": kind, "inputs": {name: file, **more}}

    def _host_guider(self, prompt: dict, inputs: dict) -> dict:
        model = self._around(prompt, inputs["model"])
        if "negative" not in inputs:
            return {"class_type": "BasicGuider", "inputs": {"model": model, "conditioning": inputs["positive"]}}
        same = {name: inputs[name] for name in ("positive", "negative", "cfg")}
        return {"class_type": "CFGGuider", "inputs": {"model": model, **same}}

    def _around(self, prompt: dict, link: list) -> list | None:
        """Where a link leads when our nodes are not there; None: to nothing."""
        node = prompt[link[0]]
        output = self.info[node["class_type"]]["output"][link[1]]
        if node["class_type"] not in self.ours or output == "GUIDER" or self._is_source(node):
            return link
        for name, (declared, *_) in self.inputs(node["class_type"]).items():
            if declared == output and is_link(node["inputs"].get(name)):
                return self._around(prompt, node["inputs"][name])
        return None


class _Draw:
    """One prompt in the making."""

    def __init__(self, about: Generator, rng: random.Random, featured: str):
        self.about, self.rng, self.graph = about, rng, Graph()
        self.family = rng.choice(about.families)
        self.is_tame = rng.random() < 0.7  # what could be meant, so that it gets as far as a picture
        self.wanted = featured  # until it is in the graph
        self.model: list = []
        self.sampled: list = []

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def prompt(self) -> dict:
        about, rng = self.about, self.rng
        self.base = self.graph.load(self.family, "model")
        kinds = [rng.choice(about.makers("MODEL", "MODEL")) for _ in range(rng.randint(0, 3))]
        output = about.info[self.wanted]["output"][0]
        takes = [declared for declared, *_ in about.inputs(self.wanted).values()]
        if output == "MODEL" and "MODEL" in takes:
            kinds.insert(rng.randint(0, len(kinds)), self.wanted)
        elif output == "MODEL":
            self.base = self.node(self.wanted)
        elif output not in ("GUIDER", "IMAGE", "LORA_MODEL"):  # of a setting that one of ours takes
            kinds.append(rng.choice([kind for kind in about.makers("MODEL", "MODEL") if self._takes(kind, output)]))
        self.model = self.base
        for kind in kinds:
            self.model = self.node(kind, model=self.model)
        self.sampled = self.sample(self.wanted if output == "GUIDER" else None)
        self.graph.add("SaveLatent", samples=self.sampled, filename_prefix="fuzz")
        ends = [kind for kind in about.ours if about.info[kind]["output_node"] and self.chance(0.1)]
        for kind in {*ends, self.wanted} if output == "IMAGE" else ends:
            self.node(kind)
        if output == "LORA_MODEL":
            self.graph.add("PreviewAny", source=self.node(self.wanted, model=self.model, latent=self.latent()))
        if self.chance(0.3):
            self.graph.add("PreviewImage", images=self.link("IMAGE"))
        return self.graph.nodes

    def _takes(self, kind: str, declared: str) -> bool:
        return declared in [found for found, *_ in self.about.inputs(kind).values()]

    def node(self, kind: str, **given) -> list:
        """A node with random inputs, but for those given."""
        inputs = dict(given)
        for name, (declared, options, optional) in self.about.inputs(kind).items():
            wanted = declared in self.about.info[self.wanted]["output"]
            if name in given or (optional and not (wanted or self.chance(0.8 if self.is_tame else 0.4))):
                continue
            if declared == "CURVE" and "CurveEditor" not in self.about.info:
                continue  # nothing on an older host gives one
            inputs[name] = self.widget(name, declared, options) if declared in WIDGETS else self.link(declared)
        window = ("start_percent", "end_percent")
        if inputs.keys() >= {*window} and self.is_tame and inputs[window[0]] >= inputs[window[1]]:
            inputs.update(zip(window, (0.0, 1.0), strict=True))
        return [self.graph.add(kind, **inputs), 0]

    def link(self, declared: str) -> list:
        about, rng, graph = self.about, self.rng, self.graph
        if declared in ("CLIP", "VAE"):
            family = self.family if self.chance(0.9) else rng.choice(about.families)
            return graph.load(family, declared.lower())
        if declared == "CLIP_VISION":
            return [graph.add("CLIPVisionLoader", clip_name=about.clip_vision), 0]
        if declared == "MODEL":
            return self.another_model()
        if declared == "CONDITIONING":
            return self.conditioning()
        if declared == "LATENT":
            return self.sampled
        if declared == "SAMPLER":
            return self.node("KSamplerSelect")
        if declared == "SIGMAS":
            return self.node("BasicScheduler", model=self.model, steps=rng.randint(1, 2), denoise=1.0)
        if declared == "IMAGE":
            return [graph.add("VAEDecode", samples=self.sampled, vae=graph.load(self.family, "vae")), 0]
        if declared == "MASK":
            size = rng.choice((64, 128))
            return [graph.add("SolidMask", value=rng.choice((0.0, 0.5, 1.0)), width=size, height=size), 0]
        if declared == "CURVE":
            return [graph.add("CurveEditor", curve=self.curve()), 0]
        for key, node in graph.nodes.items():  # an output of ours that is there
            outputs = about.info[node["class_type"]]["output"]
            if declared in outputs and self.chance(0.7):
                return [key, outputs.index(declared)]
        kind = rng.choice([kind for kind in about.ours if declared in about.info[kind]["output"]])
        return [self.node(kind)[0], about.info[kind]["output"].index(declared)]

    def another_model(self) -> list:
        family = self.family if self.chance(0.85) else self.rng.choice(self.about.families)
        model = self.graph.load(replace(family, model=self.rng.choice(self.files(family))), "model")
        if self.chance(0.5):
            makers = [kind for kind in self.about.makers("MODEL") if not self._takes(kind, "CLIP_VISION")]
            kind = self.rng.choice(makers)
            model = self.node(kind, **({"model": model} if self._takes(kind, "MODEL") else {}))
        return model

    def files(self, family: Family) -> list[tuple[str, str, str]]:
        """Those of its kind: the demo model has others of its training."""
        kind, name, file = family.model
        start = file.split("_")[0] + "_"
        same = [other for other in self.about.inputs(kind)[name][1]["options"] if other.startswith(start)]
        return [(kind, name, other) for other in same] if start == "demo_" else [family.model]

    def conditioning(self) -> list:
        text = self.rng.choice(["a cottage", "red seven blue two", "", "a " * 100, "(so:1.4) much"])
        made = [self.graph.add("CLIPTextEncode", clip=self.graph.load(self.family, "clip"), text=text), 0]
        if self.chance(0.25):
            kind = self.rng.choice(self.about.of_host("CONDITIONING", "CONDITIONING"))
            inputs = self.about.inputs(kind).items()
            made = [self.graph.add(kind, **{
                name: made if declared == "CONDITIONING" else self.small(name, options) if declared == "INT" else
                self.widget(name, declared, options) for name, (declared, options, optional) in inputs if not optional
            }), 0]  # fmt: skip
        return made

    def curve(self) -> dict:
        points = sorted(self.rng.choice([0.0, 0.25, 0.5, 1.0]) for _ in range(self.rng.randint(1, 4)))
        return {"points": [[x, self.rng.random()] for x in points], "interpolation": "monotone_cubic"}

    def latent(self) -> list:
        kinds = [kind for kind in self.about.of_host("LATENT") if "Empty" in kind]
        kind = self.family.latent if self.chance(0.75) else self.rng.choice(kinds)
        inputs = self.about.inputs(kind).items()
        return [self.graph.add(kind, **{name: self.small(name, options) for name, (_, options, _) in inputs}), 0]

    def small(self, name: str, options: dict) -> int | float:
        """A size that costs little: of the sizes that are odd in latents as many as of the even ones."""
        low, step = options.get("min", 0), options.get("step", 1)
        if isinstance(low, float):
            return round(self.rng.uniform(low, low + 1), 1)
        most = {"batch_size": 3, "length": low + 2 * step}.get(name, max(low, 96))
        return self.rng.randrange(low, min(most, options.get("max", most)) + 1, step)

    def sample(self, guider: str | None) -> list:
        seed, latent = self.rng.randrange(2**64), self.latent()
        if guider is None and self.chance(0.6):
            widgets = {"seed": seed, "steps": self.rng.randint(1, 2), "denoise": self.rng.choice([1.0, 1.0, 0.5])}
            return self.node("KSampler", model=self.model, latent_image=latent, **widgets)
        guiders = self.about.makers("GUIDER") + self.about.of_host("GUIDER", "MODEL", "CONDITIONING")
        kind, model = guider or self.rng.choice(guiders), self.model
        parts = {
            "guider": self.node(kind, model=model),
            "noise": [self.graph.add("RandomNoise", noise_seed=seed), 0],
            "sampler": self.node("KSamplerSelect"),
            "sigmas": self.node("BasicScheduler", model=model, steps=self.rng.randint(1, 2), denoise=1.0),
        }
        return [self.graph.add("SamplerCustomAdvanced", **parts, latent_image=latent), 0]

    def widget(self, name: str, declared: str, options: dict):
        rng, default = self.rng, options.get("default")
        if declared == "COMBO":
            return rng.choice(options["options"])
        if declared == "BOOLEAN":
            return self.chance(0.5)
        if declared == "STRING":
            hint = options.get("placeholder", "")
            likely = self.snapshots() if name == "snapshots" else TEXTS.get(name, [default])
            return rng.choice(likely if self.is_tame or self.chance(0.5) else [*LAYERS, *ANY, hint])
        if name in LONG:
            return rng.choice([1, 2])
        if default is not None and self.chance(0.5 if self.is_tame else 0.3):
            return default
        low, high = options["min"], options["max"]
        if declared == "INT":
            if self.chance(0.1):
                return rng.choice([high, rng.randint(low, high)])  # of a pool of texts each takes its time
            return rng.choice([low, rng.randint(low, min(high, low + 8))])
        if not self.is_tame and self.chance(0.05):
            return float("nan")
        inside = [rng.uniform(low, high), rng.uniform(low, min(high, low + 5)), options.get("step", 0.01) + low]
        return rng.choice([low, high, *inside])

    def snapshots(self) -> list[str]:
        files = self.files(self.family)
        one, other = self.rng.choice(files)[2], self.rng.choice(files)[2]
        another = self.rng.choice(self.about.families).model[2]
        return [f"{one}\n{other}", f"{one} @ 1\n{other} @ 2.5", one] + ([] if self.is_tame else [f"{another}\n{one}"])

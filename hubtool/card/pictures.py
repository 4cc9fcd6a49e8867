"""The card's pictures, drawn from the record: the same bytes for the same record and matplotlib."""

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hubtool import units
from hubtool.card.quality import current_quality
from hubtool.errors import UsageError
from hubtool.record import QUALITY_PICTURE, LayerRecord, QualityRecord, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT, DPI = 8.0, 4.2, 144
"""Inches, inches, dots an inch: 1152 pixels wide, more than the Hub's column has."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Told apart by eyes of every kind (Okabe and Ito, 2008), one a component."""

STYLE: Mapping[str, object] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
    "font.size": 12,
    "figure.facecolor": "#ffffff",  # opaque: legible on the Hub's dark page too
    "axes.facecolor": "#ffffff",
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.markersize": 4,
    "lines.linewidth": 1.4,
}

BITS_TICKS = (2, 3, 4, 6, 8, 16, 32)


def draw(record: Record) -> dict[str, bytes]:
    """PNG pictures by the names that the card shows them under; those without facts are left out.

    Raises:
        UsageError: matplotlib is not installed.
    """
    pictures: dict[str, bytes] = {}
    layers = [share for share in record.plan.layers if share.layer is not None]
    if layers:
        pictures["assets/bits.png"] = _png(lambda axes: _bits(axes, record, layers))
    if record.plan.components:
        pictures["assets/bytes.png"] = _png(lambda axes: _bytes(axes, record))
    measured = [share for share in layers if share.error]
    if measured:
        pictures["assets/error.png"] = _png(lambda axes: _errors(axes, record, measured))
    quality = current_quality(record)
    if quality is not None and quality.others:
        pictures[QUALITY_PICTURE] = _png(lambda axes: _quality(axes, record, quality))
    return pictures


def _png(paint: Callable[["Axes"], None]) -> bytes:
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("cannot draw", found=error, remedy="pip install 'hubtool[plots]'") from error
    settings: Any = {**matplotlib.rcParamsDefault, **STYLE}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure.add_subplot())
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _components(record: Record) -> dict[str, str]:
    """Colours by component, the same in every picture."""
    names = [component.name for component in record.plan.components]
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}


def _bits(axes: "Axes", record: Record, shares: list[LayerRecord]) -> None:
    from matplotlib.colors import LogNorm

    bits = {(share.component, share.layer): units.effective_bits(share.nbytes, share.parameters) for share in shares}
    names = [name for name in _components(record) if any(component == name for component, _ in bits)]
    layers = sorted({layer for _, layer in bits if layer is not None})
    cells = [[bits.get((name, layer), float("nan")) for layer in layers] for name in names]
    norm = LogNorm(BITS_TICKS[0], max(BITS_TICKS[-1], *bits.values()))
    mesh = axes.pcolormesh(cells, norm=norm, cmap="cividis_r", edgecolors="#ffffff", linewidth=0.6)
    axes.set_yticks([index + 0.5 for index in range(len(names))], names)
    axes.invert_yaxis()
    step = max(1, len(layers) // 10)
    axes.set_xticks([index + 0.5 for index in range(0, len(layers), step)], [str(n) for n in layers[::step]])
    axes.grid(visible=False)
    axes.set_xlabel("layer")
    bar = axes.figure.colorbar(mesh, ax=axes, ticks=BITS_TICKS)
    bar.ax.set_yticklabels([str(tick) for tick in BITS_TICKS])
    bar.ax.minorticks_off()
    bar.set_label("bits per weight")
    axes.set_title(f"{units.format_bits(record.measured.effective_bits)} bits per weight in all")


def _errors(axes: "Axes", record: Record, shares: list[LayerRecord]) -> None:
    for name, colour in _components(record).items():
        points = [(share.layer, share.error) for share in shares if share.component == name]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", color=colour, label=name)
    axes.set_xlabel("layer")
    axes.set_yscale("log")
    axes.set_ylabel("relative mean squared error")
    axes.figure.legend(loc="outside upper center", ncols=3)


def _quality(axes: "Axes", record: Record, quality: QualityRecord) -> None:
    own = (record.recipe.name, record.measured.nbytes, quality.distance.kl_mean)
    others = [(each.recipe, each.nbytes, each.distance.kl_mean) for each in quality.others]
    for number, (name, nbytes, nats) in enumerate([own, *others]):
        axes.plot(nbytes / units.GB, nats, "o", color=COLOURS[0 if number == 0 else 1], markersize=7)
        axes.annotate(name, (nbytes / units.GB, nats), xytext=(6, 5), textcoords="offset points")
    if quality.floor is not None:
        axes.axhline(quality.floor.kl_mean, color="#444444", linestyle="--", label="the source in bfloat16")
        axes.legend()
    least = min(nats for _, _, nats in [own, *others])
    axes.margins(x=0.2, y=0.2)
    if least > 0:
        axes.set_yscale("log")
    else:  # a lossless variant has none, which no logarithm shows
        axes.set_ylim(bottom=0)
    axes.set_xlabel("GB of weights")
    axes.set_ylabel("KL divergence in nats")


def _bytes(axes: "Axes", record: Record) -> None:
    components = record.plan.components[::-1]
    colours = _components(record)
    sizes = [component.nbytes for component in components]
    bars = axes.barh(
        [component.name for component in components],
        [nbytes / max(sizes) for nbytes in sizes],
        color=[colours[component.name] for component in components],
    )
    axes.bar_label(bars, [f" {units.format_size(nbytes)}" for nbytes in sizes], padding=3)
    axes.set_xlim(0, 1.22)
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.set_title(f"{units.format_nbytes(record.measured.nbytes)} of weights")

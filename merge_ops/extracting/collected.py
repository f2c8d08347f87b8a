"""What an extraction has found so far: layers of the LoRA, and what is not in it, with the reason."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import MergeError
from ..formats.whole_model import ModelWeight, WholeModel
from ..layer import Layer
from .difference import Difference
from .found import FoundLayer, warnings_of
from .layer_names import NamesInFiles
from .lowered import lowered
from .options import ExtractOptions

_NO_NAME = "a parameter that is no weight or bias of a layer, for which a LoRA file has no name"
_NO_VECTOR = "a bias or the weight of a norm, of which a PEFT folder holds no difference"
_NOT_ASKED = "biases and weights of norms are not asked for"
_ROUNDING = "it differs by no more than rounding to the coarser of the two dtypes does"
_NOTICED = 0.05  # of the difference; less rounding is not worth a line


@dataclass(slots=True)
class Collected:
    """The layers by their names in files. Energies are squared Frobenius norms, by the names in the model."""

    model: WholeModel
    options: ExtractOptions
    left_out: dict[str, str]
    layers: dict[str, Layer] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)  # the share of each layer's energy
    energy: dict[str, float] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)  # the energy of some of ``left_out``
    same: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    stems: dict[str, str] = field(default_factory=dict)  # of bare parameters, as ComfyUI spells them
    _names: dict[str, str] = field(default_factory=dict)  # the name in files -> the name in the model
    _close: list[str] = field(default_factory=list)  # no larger than rounding, but of one dtype
    _rounding: float = 0.0  # of ``energy``, what rounding to the coarser of two dtypes makes

    @property
    def whole(self) -> float:
        """The energy of the whole difference, as far as it is known."""
        return sum(self.energy.values()) + sum(self.lost.values())

    @property
    def share_held(self) -> float:
        """The share of the whole difference that the layers hold."""
        return sum(self.held[name] * energy for name, energy in self.energy.items()) / self.whole

    def take(self, name: str, found: Difference, names: NamesInFiles) -> None:
        """Make a layer of a difference, or note why it is none."""
        weight = self.model.weights[name]
        if found.largest <= self.options.min_diff:
            self.ignored[name] = f"no entry differs by more than {self.options.min_diff:g}"
            return
        why, may_be_rounding = self._why_not(name, weight), found.is_rounding and not found.same_dtype
        if why and may_be_rounding:
            self.ignored[name] = _ROUNDING
            return
        if why:
            self.left_out[name], self.lost[name] = why, found.energy
            return
        result = lowered(found, weight, self.options)
        if may_be_rounding and not result.stands_out:
            self.ignored[name] = _ROUNDING
            return
        in_file = names.of(name, weight)
        if weight.is_bare:
            self.stems[in_file] = in_file
        self.layers[in_file] = result.layer.changed(key=names.key(name, weight))
        self._names[in_file] = name
        self.held[name], self.energy[name] = result.held, found.energy
        self._rounding += found.rounding
        if found.is_rounding and not result.stands_out:
            self._close.append(name)

    def _why_not(self, name: str, weight: ModelWeight) -> str:
        """Why a difference cannot be in the LoRA, or nothing."""
        is_language, is_vector = self.model.dialect == "peft", weight.layout == "vector"
        # ComfyUI has names for bare parameters of its own diffusion models, and nobody for others
        is_named = not weight.is_bare or (name.startswith("diffusion_model.") and not is_language)
        if weight.layout is None or not is_named:
            return _NO_NAME
        if is_vector and not self.options.vectors:
            return _NOT_ASKED
        return _NO_VECTOR if is_vector and is_language else ""

    def refuse_nothing(self, base: WholeModel, count: int) -> None:
        """Refuse models of which nothing comes into the LoRA; ``count`` weights were compared.

        Raises:
            MergeError: with the reason.
        """
        if self.layers:
            return
        tuned = self.model.name
        if self.lost:
            name = next(iter(self.lost))
            raise MergeError(
                f"nothing of what differs can be in a LoRA; {name} is left out: {self.left_out[name]}"
            )
        if self.ignored:
            name, why = next(iter(self.ignored.items()))
            raise MergeError(f"{tuned} and {base.name} hardly differ; {name} is left out: {why}")
        raise MergeError(f"{tuned} and {base.name} are the same in all {count} weights that were compared")

    def found_layers(self) -> tuple[FoundLayer, ...]:
        """Return a line for each layer."""
        return tuple(
            FoundLayer(
                in_file,
                0 if self.layers[in_file].layout == "vector" else self.layers[in_file].rank,
                self.held[name],
                self.energy[name] / self.whole,
            )
            for in_file, name in self._names.items()
        )

    def warnings(self) -> list[str]:
        """Return what a user should know before the LoRA is used."""
        warnings = warnings_of(self.left_out, self.lost, self.whole)
        if self._close:
            warnings.append(
                f"{len(self._close)} weights differ by no more than rounding to their dtype does, "
                f"{self._close[0]} among them, so it may be no more than that"
            )
        if self._rounding > _NOTICED * self.whole:
            share = min(self._rounding / self.whole, 1.0)
            warnings.append(
                f"about {share:.0%} of the difference is rounding of the weights to their dtype, which is of "
                "no low rank; use copies of both models with more digits"
            )
        large = [name for name, layer in self.layers.items() if _is_no_smaller(layer)]
        if large:
            warnings.append(
                f"{len(large)} layers need as many numbers as the weights themselves, {large[0]} among them: "
                "their differences are not of a low rank, so use a smaller rank or energy, or keep the model"
            )
        return warnings


def _is_no_smaller(layer: Layer) -> bool:
    rows, columns = layer.matrix_shape
    return layer.layout != "vector" and layer.rank * (rows + columns) >= rows * columns > rows + columns

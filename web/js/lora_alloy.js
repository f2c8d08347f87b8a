// What the editor is told of this pack. ComfyUI loads every script of this folder; only this one does something by
// itself.

import { app } from "../../../scripts/app.js";
import { takeFiles } from "./files/known.js";
import { FILE, makeFileWidget } from "./files/widget.js";
import { LIST, makeListWidget, promoteOnConversion } from "./list/widget.js";
import { stayLow } from "./node/advanced_height.js";
import { addMethodChoice } from "./node/method_choice.js";
import { keepMethodValues } from "./node/method_values.js";
import { translateTooltips } from "./node/parameter_tooltips.js";
import { showPictures } from "./node/pictures.js";
import { addReport } from "./node/report.js";
import { rankByAliases } from "./node/search_words.js";
import { addStopButton } from "./node/stop_button.js";
import { addSweepChoice } from "./node/sweep_choice.js";
import { hideUnusedSettings } from "./node/unused_settings.js";
import { speak } from "./texts.js";

speak(() => app.extensionManager?.setting?.get("Comfy.Locale"));

app.registerExtension({
  name: "LoraAlloy.List",
  getCustomWidgets: () => ({ [LIST]: makeListWidget, [FILE]: makeFileWidget }),
  addCustomNodeDefs: (definitions) => {
    takeFiles(definitions);
    rankByAliases(definitions);
  },
  setup: promoteOnConversion,
  nodeCreated: (node) => {
    if (!node.constructor.comfyClass?.startsWith("LoraAlloy")) return;
    keepMethodValues(node);
    translateTooltips(node);
    addStopButton(node);
    addMethodChoice(node);
    addSweepChoice(node);
    hideUnusedSettings(node);
    addReport(node);
    stayLow(node);
    showPictures(node);
  },
  refreshComboInNodes: takeFiles,
});

/** Tabs by the ARIA pattern: one stop for the Tab key, arrows between them. On a wide screen the chat stands beside and needs no tab. */

import { byId, el, show } from "../dom.js";
import { t } from "../i18n.js";

const WIDE = matchMedia("(min-width: 1100px)");

export function bindTabs(list, names) {
  const tabs = new Map(names.map((name) => [name, tabOf(name)]));
  list.replaceChildren(...tabs.values());
  const visible = () => names.filter((name) => !(WIDE.matches && name === "chat"));
  let current = names[0];

  const choose = (name, focus = false) => {
    current = name;
    for (const [other, tab] of tabs) {
      const chosen = other === name;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      show(byId(`panel-${other}`), chosen || (WIDE.matches && other === "chat"));
      if (chosen && focus) tab.focus();
    }
    history.replaceState(null, "", `#${name}`); // a reload comes back to the same tab
  };
  const arrange = () => {
    show(tabs.get("chat"), !WIDE.matches);
    choose(visible().includes(current) ? current : names[0]);
  };
  for (const [name, tab] of tabs) tab.addEventListener("click", () => choose(name));
  list.addEventListener("keydown", (event) => {
    const all = visible();
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const goal = step
      ? all[(all.indexOf(current) + step + all.length) % all.length]
      : { Home: all[0], End: all.at(-1) }[event.key];
    if (!goal) return;
    event.preventDefault();
    choose(goal, true);
  });
  WIDE.addEventListener("change", arrange);
  const wanted = location.hash.slice(1);
  if (names.includes(wanted)) current = wanted;
  arrange();
}

function tabOf(name) {
  return el(
    "button",
    { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}`, class: "tab" },
    t(`host.${name}`),
  );
}

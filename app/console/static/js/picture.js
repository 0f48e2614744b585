/** The picture of an offer: its own, else one of ours that fits its name. */

import { el } from "./dom.js";

const KINDS = [
  ["tea", /tea|茶|oolong|pu'?er|龙井/i],
  ["citrus", /citrus|orange|tangerine|mandarin|pomelo|lemon|橙|橘|柑|柚|柠/i],
  ["honey", /honey|蜂蜜|蜜糖|蜜$/i],
  ["rice", /rice|millet|grain|米|粮|谷/i],
  ["mushroom", /mushroom|fung|菇|菌|木耳|松茸/i],
  ["eggs", /egg|蛋/i],
  ["chili", /chil|pepper|辣|椒/i],
  ["nuts", /nut|walnut|chestnut|seed|核桃|栗|坚果|瓜子|花生/i],
  ["apple", /apple|pear|peach|kiwi|fruit|berry|苹果|梨|桃|果|莓/i],
];

export function pictureOf(offer) {
  const own = offer.image ?? "";
  if (own.startsWith("/") && !own.startsWith("//")) return own;
  const kind = KINDS.find(([, pattern]) => pattern.test(offer.name ?? ""))?.[0] ?? "basket";
  return `/static/img/${kind}.svg`;
}

/** Decorative: the name always stands beside it. */
export function picture(offer, size) {
  const image = el("img", {
    src: pictureOf(offer),
    alt: "",
    width: size,
    height: size,
    loading: "lazy",
    decoding: "async",
    class: "picture",
  });
  image.addEventListener("error", () => image.setAttribute("src", "/static/img/basket.svg"), { once: true });
  return image;
}

/**
 * Who uses this tab. A token is a secret: it lives in the tab's sessionStorage, goes out in headers and in the connect command,
 * and never stands in an address. Viewers and staff have a place each, so that a host can watch the own room in one browser.
 */

const KEYS = { viewer: "jishi.viewer_token", staff: "jishi.staff_token" };

export const loadToken = (who) => sessionStorage.getItem(KEYS[who]) ?? "";
export const saveToken = (who, token) => sessionStorage.setItem(KEYS[who], token);
export const forgetToken = (who) => sessionStorage.removeItem(KEYS[who]);

/** The claims of a token, unchecked: good enough to greet someone, never to decide anything. Null for what is no token. */
export function readClaims(token) {
  try {
    const [, payload] = token.split(".");
    const bytes = Uint8Array.from(atob(payload.replaceAll("-", "+").replaceAll("_", "/")), (char) =>
      char.charCodeAt(0),
    );
    const claims = JSON.parse(new TextDecoder().decode(bytes));
    return claims.sub
      ? {
          id: claims.sub,
          name: claims.info?.name ?? claims.sub,
          expiresAt: (claims.exp ?? Infinity) * 1000,
          roles: claims.roles ?? [],
        }
      : null;
  } catch {
    return null;
  }
}

export function connectionUrl() {
  return `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/connection/websocket`;
}

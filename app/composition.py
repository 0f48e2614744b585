"""The list of domains. The one place where a new domain is made known; web, worker and command line all build from it."""

from app.core.registry import Registry
from app.domains.accounts.endpoints import DOMAIN as ACCOUNTS
from app.domains.analytics.endpoints import DOMAIN as ANALYTICS
from app.domains.catalogue.endpoints import DOMAIN as CATALOGUE
from app.domains.chat.endpoints import DOMAIN as CHAT
from app.domains.envelopes.endpoints import DOMAIN as ENVELOPES
from app.domains.integrations.endpoints import DOMAIN as INTEGRATIONS
from app.domains.inventory.endpoints import DOMAIN as INVENTORY
from app.domains.lottery.endpoints import DOMAIN as LOTTERY
from app.domains.orders.endpoints import DOMAIN as ORDERS
from app.domains.rooms.endpoints import DOMAIN as ROOMS
from app.domains.wallet.endpoints import DOMAIN as WALLET

# Low to high, as the import contract orders them; reactions to one event run in this order.
DOMAINS = (ACCOUNTS, CATALOGUE, ROOMS, INVENTORY, WALLET, ORDERS, CHAT, LOTTERY, ENVELOPES, ANALYTICS, INTEGRATIONS)


def build_registry() -> Registry:
    return Registry.of(DOMAINS)

"""Configuring a zone from a text that came with its files, from another host perhaps (attach --from, import)."""

from __future__ import annotations

from zonemgr.cli.output import Session
from zonemgr.errors import ConfigError, message
from zonemgr.model.zone import Zone
from zonemgr.store.paths import Layout
from zonemgr.store.settings import Settings


def configure(
    session: Session, name: str, text: str, brand_name: str, bridge: str, *, zonepath: str | None, trust: bool
) -> Zone:
    """Save the configuration under ``name``, without what grants (unless ``trust``).  Raises ZoneError.

    ``bridge`` was the default one where the text comes from; ours takes its place.  ``zonepath`` None: the default
    place.  Addresses that another zone has, or that do not belong to our bridge, are replaced.
    """
    from zonemgr.brandkit import loader
    from zonemgr.store import admission, config, settings, toml, zones

    layout = session.layout
    toml.parse(text.encode(), "the configuration")
    brand = loader.load(brand_name, layout)
    with config.edit_lock(layout):
        if zones.exists(layout, name):
            raise ConfigError("Zone name already in use")
        draft = config.Draft.new(layout, name, text)
        draft.set((), "zonename", name)
        draft.set((), "zonepath", zonepath or str(layout.zonepath(name)))
        if draft.zone().brand != brand_name:
            raise ConfigError("the configuration is not of brand '{brand}'", brand=brand_name)
        ours = settings.load(layout)
        for index, link in enumerate(draft.zone().net):
            if link.anet and link.anet == bridge:
                draft.set(("net", index), "anet", ours.bridge)
        if not trust:
            default = brand.privileges(draft.zone().ip_type).default
            for what in admission.disarm(draft, default, ours.bridge):
                session.message(
                    message(
                        "not taken over: {what} (it grants something of this host; --trust keeps it)",
                        what=what,
                    ),
                    name,
                )
        why = _unusable_address(layout, draft.zone(), ours)
        if why:
            config.renew_addresses(draft)
            new = ", ".join(address for link in draft.zone().net for address in link.address)
            session.message(message("{why}; it gets {address}", why=why, address=new or "no address"), name)
        return draft.save_locked()


def _unusable_address(layout: Layout, zone: Zone, ours: Settings) -> str | None:
    """Why the zone cannot keep its addresses here, or None."""
    import ipaddress

    from zonemgr.store import config

    networks = [ipaddress.ip_interface(text).network for text in ours.bridge_address]
    for link in zone.net:
        for text in link.address if link.anet == ours.bridge else ():
            address = ipaddress.ip_interface(text).ip
            if not any(address in network for network in networks if network.version == address.version):
                return f"net: {address} is not on the bridge {ours.bridge}"
    try:
        config.check_addresses(layout, zone)
    except ConfigError as error:
        return error.text
    return None

"""Loading plugins and asking them.

A hook is asked plugin by plugin, so that what one raises never touches another's answer. Every answer is checked and
made plain (`sorter.plugins.answers`); whatever is wrong comes back beside the answers, as `PluginError`.
"""

from sorter.plugins.asking import Identified, Listed, Named, Plugins, Routed, matches
from sorter.plugins.local import Answer, Asked
from sorter.plugins.settings import Locate

__all__ = ["Answer", "Asked", "Identified", "Listed", "Locate", "Named", "Plugins", "Routed", "matches"]

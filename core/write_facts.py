# SPDX-License-Identifier: MIT
"""Write src/vmalloc/facts.py as the C header vmalloc_facts.h: python write_facts.py FACTS OUTPUT.

`python write_facts.py FACTS` prints the C files of pools that the designs name, for meson.
"""

import runpy
import sys


def header(facts):
    designs = facts["POOL_DESIGNS"]
    numbers = "\n".join(f"    VM_{name} = {value}," for name, value in facts["numbers"]().items())
    events = "".join(f", VM_EVENT_{name.upper()}" for name in facts["EVENTS"])
    constants = ", ".join(f"VM_POOLS_{design.name.upper()}" for design in designs)
    rows = " \\\n".join(f"    X({d.name}, {d.pools or 'none'}, {int(d.magazines)})" for d in designs)
    return f"""/* SPDX-License-Identifier: MIT */
/* Made at build time from src/vmalloc/facts.py, which says what each of these means. */
#ifndef VMALLOC_FACTS_H
#define VMALLOC_FACTS_H

enum {{
{numbers}
}};

typedef enum {{ {constants} }} vm_pools;
typedef enum {{ VM_EVENT_NONE{events} }} vm_event_kind;
#define VM_NR_POOL_DESIGNS {len(facts["POOL_DESIGNS"])}

/* X(name of the design, pools that keep its ready ranges, has magazines) */
#define VM_POOL_DESIGNS(X) \\
{rows}

#endif
"""


def main(source, output=None):
    facts = runpy.run_path(source)
    if output is None:
        print("\n".join(sorted({f"pool_{d.pools}.c" for d in facts["POOL_DESIGNS"] if d.pools})))
        return
    with open(output, "w") as file:
        file.write(header(facts))


main(*sys.argv[1:])

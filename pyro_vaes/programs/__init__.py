"""Reading a Pyro program: its sites, plates, masks, scales and units; running one aside.

Guides, bounds, checks and diagnostics look at programs through this room alone:

    marks          what ``infer={...}`` says of a site
    sites          what a site is: latent, observed, auxiliary, a factor, ...
    plates, units  the plates around it, and which of them holds the data
    structure      which batches are alike; what was found out, once for each kind
    runs, aside    running programs, with values given, and without leaving a trace
    densities      log-densities per datum, for one or many particles
    swap           running a model as a guide, its priors swapped for posteriors
    pair           a model and a guide together: modules, parameters, state
"""

from .aside import local_parameters, modes, preserve_rng
from .densities import (
    objective_terms,
    over_particles,
    per_datum_log_prob,
    per_datum_log_weights,
    per_datum_terms,
    run_particles,
)
from .dependencies import dependencies, mean_field_violations
from .enumeration import draw_enumerated, summed_log_prob
from .evaluation_handlers import FixedRows, WithoutData
from .global_draws import KeepGlobals
from .handler_stack import ambient_scale
from .keywords import bind_keywords, unbind_keywords
from .marks import (
    evidence_for,
    has_analytic_kl,
    is_auxiliary,
    is_enumerated,
    mark_statements,
    marks,
    may_be_point,
    replaced_observation,
    was_observed,
)
from .pair import Pair
from .particles import broadcasts, find_particle_plate
from .plates import Plate, enclosing_plates, find_plate, loop_row, plates
from .reach import (
    Program,
    argument_names,
    modules_of,
    num_positional,
    required_arguments,
)
from .runs import (
    PairTraces,
    dry_run,
    dry_run_pair,
    is_dry_run,
    run,
    run_pair,
    share_dry_runs,
)
from .site_recorder import SiteRecorder
from .sites import (
    DENSITIES,
    DRAWN,
    OBJECTIVE,
    VALUED,
    Role,
    Sites,
    expanded,
    is_latent,
    log_density,
    log_density_sum,
    mask_of,
    own_scale,
    role,
    sites,
    weighed_sites,
)
from .structure import Findings
from .swap import (
    Answer,
    HiddenPlates,
    SwapPriors,
    copied_buffers,
    outside_the_run,
    run_swapped,
)
from .units import (
    DataPlate,
    UnitCounter,
    Units,
    data_plate,
    find_data_plate,
    num_rows,
)
from .which_unit import crossed_plates, find_unit, is_inside, shared_plates

__all__ = [
    "DENSITIES",
    "DRAWN",
    "OBJECTIVE",
    "VALUED",
    "Answer",
    "DataPlate",
    "Findings",
    "FixedRows",
    "HiddenPlates",
    "KeepGlobals",
    "Pair",
    "PairTraces",
    "Plate",
    "Program",
    "Role",
    "SiteRecorder",
    "Sites",
    "SwapPriors",
    "UnitCounter",
    "Units",
    "WithoutData",
    "ambient_scale",
    "argument_names",
    "bind_keywords",
    "copied_buffers",
    "broadcasts",
    "crossed_plates",
    "data_plate",
    "dependencies",
    "draw_enumerated",
    "dry_run",
    "dry_run_pair",
    "enclosing_plates",
    "evidence_for",
    "expanded",
    "find_data_plate",
    "find_particle_plate",
    "find_plate",
    "find_unit",
    "has_analytic_kl",
    "is_auxiliary",
    "is_dry_run",
    "is_enumerated",
    "is_inside",
    "is_latent",
    "local_parameters",
    "log_density",
    "log_density_sum",
    "loop_row",
    "mark_statements",
    "mask_of",
    "marks",
    "may_be_point",
    "mean_field_violations",
    "modes",
    "modules_of",
    "num_positional",
    "num_rows",
    "objective_terms",
    "outside_the_run",
    "over_particles",
    "own_scale",
    "per_datum_log_prob",
    "per_datum_log_weights",
    "per_datum_terms",
    "plates",
    "preserve_rng",
    "replaced_observation",
    "required_arguments",
    "role",
    "run",
    "run_pair",
    "run_swapped",
    "run_particles",
    "share_dry_runs",
    "summed_log_prob",
    "shared_plates",
    "sites",
    "unbind_keywords",
    "was_observed",
    "weighed_sites",
]

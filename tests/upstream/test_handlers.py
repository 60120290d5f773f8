"""Facts about Pyro's handlers and messages. Each test says who relies on its fact."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.util import prune_subsample_sites, site_is_subsample


class Noting(Messenger):
    """Writes its name and the way of the message into a list."""

    def __init__(self, name, notes):
        super().__init__()
        self.name, self.notes = name, notes

    def _pyro_sample(self, msg):
        self.notes.append(f"{self.name} before")

    def _pyro_post_sample(self, msg):
        self.notes.append(f"{self.name} after")


def normal(name="z", **options):
    return pyro.sample(name, dist.Normal(0.0, 1.0), **options)


def trace_of(program, *args):
    return poutine.trace(program).get_trace(*args)


def test_stack_is_a_list_of_handlers_with_the_outermost_first():
    """programs: whatever asks which handlers are around a program reads this private list."""
    assert _PYRO_STACK == []
    with Noting("outer", []) as outer, Noting("inner", []) as inner:
        assert list(_PYRO_STACK) == [outer, inner]
    assert _PYRO_STACK == []


def test_message_goes_to_the_innermost_handler_first_and_back_from_the_outermost():
    """programs, infer: order in which masks, scales and recorders see a site."""
    notes = []
    with Noting("outer", notes), Noting("inner", notes):
        normal()
    assert notes == ["inner before", "outer before", "outer after", "inner after"]


def test_stop_hides_a_message_from_outer_handlers_on_both_ways():
    """programs: running a program aside, inside ``poutine.block``."""
    notes = []
    with Noting("outer", notes), poutine.block(), Noting("inner", notes):
        normal()
    assert notes == ["inner before", "inner after"]


def test_process_message_of_a_handler_applies_it_to_a_message_made_by_hand():
    """guides: the scale and mask that the surrounding handlers give to a probe."""
    message = {"type": "sample", "name": "probe", "scale": 1.0, "mask": None}
    message |= {"is_observed": False, "infer": {}, "stop": False, "done": False}
    with poutine.scale(scale=3.0), poutine.mask(mask=torch.tensor([True, False])):
        for handler in reversed(_PYRO_STACK):
            handler._process_message(message)
    assert message["scale"] == 3.0 and message["mask"].tolist() == [True, False]


def test_handlers_multiply_scales_and_conjoin_masks():
    """infer, diagnostics: the weight of a site is one number and its mask one tensor."""
    masks = torch.tensor([True, True, False]), torch.tensor([True, False, False])

    def program():
        with pyro.plate("data", 3), poutine.scale(scale=2.0), poutine.mask(mask=masks[0]):
            with poutine.scale(scale=3.0), poutine.mask(mask=masks[1]):
                pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))

    site = trace_of(program).nodes["z"]
    assert site["scale"] == 6.0 and site["mask"].tolist() == [True, False, False]


def test_mask_on_an_observed_site_leaves_value_and_distribution_unmasked():
    """infer: masks are applied with ``scale_and_mask`` when a density is summed."""
    mask = torch.tensor([True, False])

    def program():
        with pyro.plate("data", 2), poutine.mask(mask=mask):
            pyro.sample("x", dist.Normal(torch.zeros(2), 1.0), obs=torch.ones(2))

    trace = trace_of(program)
    trace.compute_log_prob()
    site = trace.nodes["x"]
    assert site["unscaled_log_prob"].shape == (2,) and type(site["fn"]) is dist.Normal
    assert site["log_prob"][1] == 0 and site["log_prob"][0] != 0


def partly_observed(**options):
    with pyro.plate("data", 3):
        mask = torch.tensor([True, False, True])
        fn = dist.Normal(torch.zeros(3), 1.0)
        return pyro.sample("x", fn, obs=torch.ones(3), obs_mask=mask, **options)


def test_obs_mask_splits_a_site_into_an_observed_and_a_latent_one():
    """programs, diagnostics: the latent ``x_unobserved`` has no counterpart in most guides."""
    trace = trace_of(partly_observed)
    observed, latent = trace.nodes["x_observed"], trace.nodes["x_unobserved"]
    assert observed["is_observed"] and not latent["is_observed"]
    assert observed["mask"].tolist() == [True, False, True]
    assert latent["mask"].tolist() == [False, True, False]


def test_obs_mask_keeps_the_whole_site_as_a_deterministic_one():
    """programs: the site ``x`` itself must not be counted a second time."""
    site = trace_of(partly_observed).nodes["x"]
    assert site["is_observed"] and site["infer"]["_deterministic"]
    assert site["value"][0] == 1 and site["value"][1] != 1


def test_obs_mask_drops_infer():
    """programs: no mark in ``infer`` survives on a partly observed site."""
    trace = trace_of(lambda: partly_observed(infer={"my_mark": True}))
    sites = [trace.nodes[name] for name in ("x", "x_observed", "x_unobserved")]
    assert all("my_mark" not in site["infer"] for site in sites)
    kept = trace_of(lambda: normal(infer={"my_mark": True})).nodes["z"]
    assert kept["infer"]["my_mark"]


def test_replay_gives_the_model_the_values_of_the_guide_as_latent_sites():
    """infer, diagnostics: every estimate replays the model against the guide's trace."""
    guide_trace = trace_of(normal)
    site = trace_of(poutine.replay(normal, trace=guide_trace)).nodes["z"]
    assert site["value"] is guide_trace.nodes["z"]["value"]
    assert not site["is_observed"]


def test_condition_makes_a_site_observed_and_replay_does_not():
    """infer, diagnostics: conditioned values have a density but count as data."""
    site = trace_of(poutine.condition(normal, data={"z": torch.tensor(0.5)})).nodes["z"]
    assert site["is_observed"] and site["value"] == 0.5


def test_replay_leaves_observed_sites_of_the_model_alone():
    """infer: a guide may have a site under the name of the data."""
    data = torch.tensor(0.5)
    program = poutine.replay(lambda: normal(obs=data), trace=trace_of(normal))
    assert trace_of(program).nodes["z"]["value"] is data


def test_replay_refuses_an_observed_value_for_a_latent_site():
    """infer.check: sites of a guide that are observed are no draws."""
    guide_trace = trace_of(lambda: normal(obs=torch.tensor(0.5)))
    with pytest.raises(RuntimeError, match="must be sampled in trace"):
        trace_of(poutine.replay(normal, trace=guide_trace))


def nested(size=2):
    with pyro.plate("outer", 4, dim=-1), pyro.plate("inner", size, dim=-2):
        for _ in pyro.plate("sequential", 1):
            return pyro.sample("z", dist.Normal(torch.zeros(size, 4), 1.0))


def test_cond_indep_stack_has_the_outermost_plate_first():
    """programs: the outermost plate that all sites share is the one of the data."""
    frames = trace_of(nested).nodes["z"]["cond_indep_stack"]
    assert [f.name for f in frames] == ["outer", "inner", "sequential"]


def test_frames_tell_name_dim_size_and_whether_they_are_vectorized():
    """programs: plates are read off these fields alone."""
    outer, inner, sequential = trace_of(nested).nodes["z"]["cond_indep_stack"]
    assert (outer.dim, outer.size, outer.vectorized) == (-1, 4, True)
    assert (inner.dim, inner.size, inner.vectorized) == (-2, 2, True)
    assert sequential.dim is None and not sequential.vectorized


def subsampling():
    with pyro.plate("data", 10, subsample_size=4) as index:
        pyro.sample("z", dist.Normal(torch.zeros(4), 1.0))
    return index


def test_frame_of_a_subsampling_plate_tells_the_full_size_and_scales_its_sites():
    """programs, infer: the number of data that a row stands for is full_size / size."""
    site = trace_of(subsampling).nodes["z"]
    (frame,) = site["cond_indep_stack"]
    assert (frame.size, frame.full_size) == (4, 10)
    assert site["scale"] == pytest.approx(2.5)


def test_frame_of_a_plate_that_does_not_subsample():
    """programs: whether a plate subsamples is told by its ``full_size``."""
    outer, *_ = trace_of(nested).nodes["z"]["cond_indep_stack"]
    assert outer.full_size in (None, outer.size)


def test_subsampling_is_a_site_of_its_own_that_site_is_subsample_knows():
    """programs, infer: such sites are pruned before any density is summed."""
    trace = trace_of(subsampling)
    assert site_is_subsample(trace.nodes["data"])
    assert not site_is_subsample(trace.nodes["z"])
    assert "data" not in prune_subsample_sites(trace).nodes


def test_plate_without_subsampling_leaves_a_site_too():
    """programs: a plate's name may not be that of a sample site."""
    trace = trace_of(nested)
    assert site_is_subsample(trace.nodes["outer"])


def test_deterministic_is_an_observed_site_marked_in_infer():
    """programs: such sites are no data and have no density."""
    site = trace_of(lambda: pyro.deterministic("d", torch.ones(2), event_dim=1)).nodes["d"]
    assert site["type"] == "sample" and site["is_observed"]
    assert site["infer"]["_deterministic"] is True


def test_factor_is_an_observed_unit_site():
    """diagnostics: a factor has a density but no value that could be replicated."""
    site = trace_of(lambda: pyro.factor("f", torch.tensor(-2.0))).nodes["f"]
    assert site["is_observed"] and isinstance(site["fn"], dist.Unit)
    assert site["fn"].log_prob(site["value"]) == -2.0 and site["value"].numel() == 0


def test_factor_in_a_guide_must_say_whether_it_has_rsample():
    """guides, infer: the classification term of a guide with labels."""
    fn = trace_of(lambda: pyro.factor("f", torch.zeros(()), has_rsample=False)).nodes["f"]["fn"]
    assert fn.has_rsample is False


def test_block_hides_types_where_observe_means_observed_sample_sites():
    """guides: the model is run inside a guide with its sites hidden, its parameters seen."""

    def program():
        pyro.param("weight", torch.ones(()))
        normal()
        normal("x", obs=torch.zeros(()))

    def names(*hidden):
        return {n for n in trace_of(poutine.block(program, hide_types=list(hidden))).nodes if n[0] != "_"}

    assert names("sample") == {"weight", "x"}
    assert names("observe") == {"weight", "z"}
    assert names("sample", "observe") == {"weight"}
    assert names("param") == {"z", "x"}


def test_auxiliary_sites_of_a_guide_have_no_counterpart():
    """guides: the joint draw of all latents is one auxiliary site, the latents are Deltas."""
    elbo = pyro.infer.Trace_ELBO()

    def guide():
        joint = pyro.sample("joint", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(joint))

    assert isinstance(elbo.loss(normal, guide), float)


def test_enumerated_value_gets_a_dimension_left_of_max_plate_nesting():
    """models, infer: sites that TraceEnum_ELBO sums over."""

    def program():
        with pyro.plate("data", 4):
            logits = torch.zeros(4, 3)
            return pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})

    trace = trace_of(poutine.enum(program, first_available_dim=-2))
    assert trace.nodes["y"]["value"].shape == (3, 1)
    assert trace.nodes["y"]["infer"]["_enumerate_dim"] == -2


def test_uncondition_draws_observed_sites_anew_but_not_factors():
    """diagnostics: replicated data come from the model without its data."""

    def program():
        normal("x", obs=torch.tensor(7.0))

    site = trace_of(poutine.uncondition(program)).nodes["x"]
    assert site["value"] != 7.0 and site["infer"]["was_observed"]

"""The parts of the training run, and resuming an interrupted run."""

import dataclasses

import numpy as np
import pytest
import torch

from sam3_engine.architecture import Architecture
from sam3_engine.contexts import importing_sam3
from sam3_engine.model import load_model
from sam3_engine.options import Options
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import ConceptPrompt
from sam3_engine.random_weights import SMALL
from sam3_engine.redirection import redirect_cuda
from testbed.scenes import COLORS, DOT_COLORS, KINDS, draw_scene
from training.batches import NOTHING, Batches, _dense_targets
from training.dense import DenseHeads
from training.detector import _instance_losses, _match
from training.exemplars import ExemplarHead, exemplar_boxes
from training.losses import cheapest_pairs, mask_iou, mask_losses
from training.outlines import _assign, _true_ious
from training.starting_weights import _NEIGHBOURS, _attend_to_neighbours, used_tokens
from training.train import Plan, Training
from training.train import main as train_main

with importing_sam3():
    from sam3_engine.network import build_network

CPU = torch.device("cpu")
TINY = Architecture.from_dict(
    {**SMALL.to_dict(), "queries": 16, "vit_pretrain_resolution": SMALL.resolution, "vit_global_blocks": (1, 2)}
)
# memory and mask prompts (video only); a text projection and a pyramid level that the package does not use
UNUSED = ("maskmem_", "model.transformer.", "mask_down", "obj_score", "no_obj", "obj_ptr", "no_mem_pos_enc")
UNUSED += ("text_projection", "convs.3.", "geometry_encoder.points_")
PLAN = Plan(seed=3, dense_steps=2, dense_scenes=2, steps=5, scenes=2)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Use one thread: such small networks are slower on several, which wait for each other at every step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def batch():
    return Batches(TINY, seed=5, scenes=6, prompts=True)[7]


def test_a_batch_depends_only_on_seed_and_number(batch):
    again, next_one = Batches(TINY, seed=5, scenes=6, prompts=True)[7], Batches(TINY, seed=5, scenes=6, prompts=True)[8]
    assert torch.equal(batch.images, again.images)
    assert torch.equal(batch.masks, again.masks)
    assert [prompt.phrase for prompt in batch.detector_prompts] == [prompt.phrase for prompt in again.detector_prompts]
    assert not torch.equal(batch.images, next_one.images)


def test_regions_have_the_boxes_of_their_masks(batch):
    side = batch.masks.shape[-1]
    for mask, box in zip(batch.masks, batch.boxes, strict=True):
        rows, columns = torch.nonzero(mask > 0.05, as_tuple=True)
        x, y, width, height = (side * box).tolist()
        assert abs((x - width / 2) - float(columns.min())) < 1.3
        assert abs((y + height / 2) - float(rows.max() + 1)) < 1.3


def test_points_lie_on_the_side_of_their_label(batch):
    side = batch.masks.shape[-1]
    asked = 0
    for prompts in batch.outlines:
        for points, labels, answer in zip(prompts.points, prompts.labels, prompts.answers, strict=True):
            for (x, y), label in zip(points.tolist(), labels.tolist(), strict=True):
                coverage = float(batch.masks[answer, int(y * side), int(x * side)]) if max(x, y) < 1 else 0.0
                if label in (0, 1):
                    asked += 1
                    assert coverage > 0 if label else coverage < 1
    assert asked > 20


def test_dense_targets_match_the_scene():
    random = np.random.default_rng(6)
    scenes = [draw_scene(random, 112, 112) for _ in range(10)]
    targets = _dense_targets(scenes, 112)
    for number, scene in enumerate(scenes):
        for shape in scene.shapes:
            there = (targets.kind[number] == KINDS.index(shape.kind)) & (
                targets.color[number] == COLORS.index(shape.color)
            )
            wanted = sum(region.coverage for region in scene.instances(f"{shape.color} {shape.kind}"))
            assert mask_iou(there, torch.from_numpy(wanted > 0.5)) > 0.9
            row, column = np.unravel_index(shape.whole.coverage.argmax(), shape.whole.coverage.shape)
            assert (112 * targets.box[number, :, row, column]).tolist() == pytest.approx(shape.whole.box, abs=1e-3)
            assert targets.object[number, row, column] > 0.99
        for k, color in enumerate(DOT_COLORS):
            drawn = sum((region.coverage for region in scene.instances(f"{color} dot")), np.zeros((112, 112)))
            assert np.allclose(targets.dots[number, k], drawn, atol=1e-6)
    assert (targets.object[targets.kind != NOTHING] > 0.3).all()


def answered(batch, scores):
    """Return the outputs of a detector whose last queries each find one answer exactly."""
    count, queries = len(batch.detector_prompts), 12
    outputs = {
        "pred_logits": torch.full((count, queries, 1), -scores),
        "pred_boxes": torch.rand(count, queries, 4, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.4,
        "pred_masks": torch.zeros(count, queries, *batch.masks.shape[1:]),
        "presence_logit_dec": torch.full((count, 1), -scores),
    }
    for number, prompt in enumerate(batch.detector_prompts):
        for position, answer in enumerate(prompt.answers):
            outputs["pred_logits"][number, -1 - position] = scores
            outputs["pred_boxes"][number, -1 - position] = batch.boxes[answer]
            outputs["pred_masks"][number, -1 - position] = 40 * (batch.masks[answer] - 0.5)
            outputs["presence_logit_dec"][number] = scores
    return outputs


def test_queries_are_matched_to_their_answers(batch):
    outputs = answered(batch, scores=9.0)
    prompts, queries, regions = _match(outputs["pred_logits"][..., 0], outputs["pred_boxes"], batch, most_matches=1)
    matched = set(zip(prompts.tolist(), queries.tolist(), regions.tolist(), strict=True))
    assert matched == {
        (number, 11 - position, answer)
        for number, prompt in enumerate(batch.detector_prompts)
        for position, answer in enumerate(prompt.answers)
    }


def test_an_answer_can_match_several_queries(batch):
    outputs = answered(batch, scores=9.0)
    prompts, queries, regions = _match(outputs["pred_logits"][..., 0], outputs["pred_boxes"], batch, most_matches=3)
    for number, prompt in enumerate(batch.detector_prompts):
        of_prompt = regions[prompts == number]
        assert len(set(queries[prompts == number].tolist())) == len(of_prompt)
        if prompt.answers:
            each = min(3, 12 // len(prompt.answers))
            assert sorted(of_prompt.tolist()) == sorted(prompt.answers * each)


def test_detector_losses_are_lowest_for_the_answers(batch):
    right = _instance_losses(answered(batch, scores=9.0), batch)
    undecided = _instance_losses(answered(batch, scores=0.0), batch)
    wrong = _instance_losses(answered(batch, scores=-9.0), batch)
    for name in ("score", "presence"):
        assert right[name] < 0.01 < undecided[name] < wrong[name]
    assert right["l1"] < 1e-5
    assert right["giou"] < 1e-4
    negated = answered(batch, scores=9.0)
    negated["pred_masks"] *= -1
    assert right["dice"] < 1  # out of 2; edge pixels are partly covered, which a binary mask cannot represent
    assert _instance_losses(negated, batch)["dice"] > 1.8
    moved = answered(batch, scores=9.0)
    moved["pred_boxes"][..., 0] += 0.1
    assert _instance_losses(moved, batch)["giou"] > 0.1


def test_each_acceptable_region_gets_its_own_token():
    cost = torch.tensor([[3.0, 1.0, 3.0], [1.0, 0.0, 9.0], [5.0, 5.0, 4.0]])
    rows, tokens = _assign(cost, counts=[2, 1])  # the first prompt has two acceptable regions
    assert rows.tolist() == [0, 1, 2]
    assert tokens.tolist() == [1, 0, 2]


def test_iou_targets_use_the_answer_or_the_best_acceptable_region():
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, :1] = True, True  # the answer and another acceptable region
    found = torch.stack([masks[0], masks[1], masks[0], torch.zeros(4, 4, dtype=torch.bool)])[None]
    ious = _true_ious(found, masks[:1], masks, owners=[0, 0])
    assert ious.tolist() == [[1, 1, 1, 0]]
    ious = _true_ious(found, masks[1:], masks[1:], owners=[0])
    assert ious.tolist() == [[0.5, 1, 0.5, 0]]


def test_heads_initially_attend_to_a_neighbour():
    network = build_network(dataclasses.replace(TINY, vit_window=TINY.grid), CPU)
    attention = network.backbone.vision_backbone.trunk.blocks[1].attn  # a global block
    side, heads = TINY.grid, attention.num_heads
    with torch.no_grad():
        _attend_to_neighbours(attention, _NEIGHBOURS[0])
        constant = attention.qkv.bias.reshape(3, heads, 1, -1).expand(-1, -1, side * side, -1)
        queries, keys = attention._apply_rope(constant[0][None], constant[1][None])
        looks_at = (queries @ keys.transpose(-1, -2))[0].argmax(dim=-1).reshape(heads, side, side)
    for head in range(heads):
        x, y = _NEIGHBOURS[0][head]
        for row in range(1, side - 1):
            for column in range(1, side - 1):
                assert looks_at[head, row, column] == (row + y) * side + column + x


def test_mask_losses_are_lowest_for_the_mask_itself():
    masks = torch.zeros(3, 16, 16)
    masks[:, 4:9, 5:12] = 1
    logits = torch.stack([20 * (2 * masks[0] - 1), torch.zeros(16, 16), -20 * (2 * masks[0] - 1)])
    cross_entropy, dice = mask_losses(logits, masks)
    assert cross_entropy[0] < 1e-3 < cross_entropy[1] < cross_entropy[2]
    assert dice[0] < 1e-2 < dice[1] < dice[2]


def test_pixels_near_the_region_weigh_more():
    masks = torch.zeros(2, 32, 32)
    masks[:, :4, :4] = 1
    logits = torch.full((2, 32, 32), -20.0)
    logits[:, :4, :4] = 20
    logits[0, 0, 0] = -20  # one wrong pixel inside the region, one far from it
    logits[1, 31, 31] = 20
    cross_entropy, _ = mask_losses(logits, masks)
    assert cross_entropy[0] > 5 * cross_entropy[1] > 0


def test_assignment_finds_the_cheapest_pairs():
    rows, columns = cheapest_pairs(torch.tensor([[1.0, 2.0], [1.1, 9.0], [float("nan"), 0.5]]))
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 0), (2, 1)]


def test_mask_iou_broadcasts_over_batches():
    one, other = torch.zeros(2, 1, 4, 4, dtype=torch.bool), torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    one[..., :2] = True
    other[0, 1, :, 1:3] = True
    assert mask_iou(one, other)[0].tolist() == pytest.approx([0, 1 / 3, 0])


def test_dense_heads_learn_from_features(batch):
    """The losses decrease if the features contain the answer."""
    torch.manual_seed(0)
    width = 32
    heads = DenseHeads(width)
    pyramid = []
    for side in (4 * TINY.grid, 2 * TINY.grid, TINY.grid):
        dense = batch.dense[0 if side == 4 * TINY.grid else 1]
        feature = torch.zeros(len(batch.images), width, side, side)
        if side != 2 * TINY.grid:
            feature[:, 0], feature[:, 1:3] = dense.object, dense.dots
            for kind in range(len(KINDS)):
                feature[:, 3 + kind] = dense.kind == kind
        pyramid.append(feature)
    features = {"backbone_fpn": pyramid, "sam2_backbone_out": {"backbone_fpn": pyramid}}
    optimiser = torch.optim.Adam(heads.parameters(), lr=0.1)
    seen = []
    for _ in range(60):
        losses = heads(features, batch)
        seen.append({name: loss.item() for name, loss in losses.items()})
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
    for name in ("object", "dots", "kind"):
        assert seen[-1][name] < 0.3 * seen[0][name]


def test_exemplar_boxes_of_several_prompts_are_padded():
    boxes = [torch.rand(count, 4) for count in (0, 2, 1)]
    labels = [torch.zeros(0, dtype=torch.long), torch.tensor([1, 0]), torch.tensor([1])]
    shown = exemplar_boxes(boxes, labels)
    assert shown.box_embeddings.shape == (2, 3, 4)
    assert torch.equal(shown.box_embeddings[:, 1], boxes[1])
    assert torch.equal(shown.box_embeddings[:1, 2], boxes[2])
    assert shown.box_mask.tolist() == [[True, True], [False, False], [False, True]]
    assert shown.box_labels[:, 1].tolist() == [True, False]
    assert shown.box_labels[0, 2]


def test_the_geometry_encoder_learns_the_content_of_exemplar_boxes(batch):
    """With fixed image features, a box's token learns its kind and color."""
    torch.manual_seed(1)
    training = Training(PLAN, CPU, TINY)
    network, head = training.network, ExemplarHead(TINY.width)
    with torch.no_grad(), redirect_cuda(CPU):
        features = network.backbone.forward_image(batch.images.float() / 127.5 - 1)
    optimiser = torch.optim.Adam([*network.geometry_encoder.parameters(), *head.parameters()], lr=3e-3)
    seen = []
    for _ in range(40):
        with redirect_cuda(CPU):
            losses = head(network, features, batch)
        seen.append({name: loss.item() for name, loss in losses.items()})
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
    for name in ("kind", "color"):
        assert seen[-1][name] < 0.3 * seen[0][name]


def finished(training, state_file):
    for _ in training.run(state_file):
        pass
    return training


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    state_file = tmp_path / "state.pt"
    whole = finished(Training(PLAN, CPU, TINY), state_file)
    half = Training(PLAN, CPU, TINY)
    half.plan = dataclasses.replace(PLAN, steps=3)  # stop here, but keep the schedule of the whole plan
    finished(half, state_file)
    half.plan = PLAN
    half.save(state_file)

    resumed = Training(PLAN, CPU, TINY)
    resumed.load(state_file)
    assert resumed.step == 3
    finished(resumed, state_file)
    assert resumed.step == PLAN.steps
    for name, tensor in whole.average.state_dict().items():
        assert torch.equal(tensor, resumed.average.state_dict()[name]), name


def test_a_state_from_another_plan_is_refused(tmp_path):
    training = Training(PLAN, CPU, TINY)
    training.save(tmp_path / "state.pt")
    other = Training(dataclasses.replace(PLAN, rate=0.1), CPU, TINY)
    with pytest.raises(ValueError, match="another plan"):
        other.load(tmp_path / "state.pt")


def test_a_state_from_another_architecture_is_refused(tmp_path):
    training = Training(PLAN, CPU, TINY)
    training.save(tmp_path / "state.pt")
    other = Training(PLAN, CPU, dataclasses.replace(TINY, ffn_width=32))
    with pytest.raises(ValueError, match="another architecture"):
        other.load(tmp_path / "state.pt")


def test_the_command_trains_logs_and_removes_its_state(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("training.train.SHAPES", TINY)
    plan = ["--steps", "3", "--dense-steps", "2", "--scenes", "2", "--dense-scenes", "2"]
    state = tmp_path / "a" / "b" / "state.pt"
    monkeypatch.setattr("sys.argv", ["train", str(tmp_path / "trained.pt"), "--state", str(state), *plan])
    train_main()
    load_model(tmp_path / "trained.pt", CPU)
    printed = capsys.readouterr().out
    overview, _, losses = printed.partition("at the end.\n")
    for told in (
        "to step 3;",
        "minutes on two CPU cores",
        f"saved to {state} every 5 minutes",
        str(tmp_path / "trained.pt"),
    ):
        assert told in overview
    assert "step 2" in losses
    assert "outline dice" in losses
    assert state.with_suffix(".log").read_text() == losses
    assert not state.exists()


def test_the_command_says_where_it_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("training.train.SHAPES", TINY)
    state = tmp_path / "state.pt"
    half = Training(PLAN, CPU, TINY)
    half.plan = dataclasses.replace(PLAN, steps=3)
    finished(half, state)
    half.plan = PLAN
    half.save(state)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in dataclasses.asdict(PLAN).items()]
    monkeypatch.setattr("sys.argv", ["train", str(tmp_path / "trained.pt"), "--state", str(state), *options])
    train_main()
    assert f"Training from step 3, saved in {state}, to step {PLAN.steps};" in capsys.readouterr().out


def test_the_command_reports_errors_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train", str(tmp_path / "nowhere" / "trained.pt")])
    with pytest.raises(SystemExit):
        train_main()
    assert "nowhere for the checkpoint does not exist" in capsys.readouterr().err


def test_every_parameter_used_for_images_is_trained(tmp_path):
    training = Training(PLAN, CPU, TINY)
    before = {name: tensor.clone() for name, tensor in training.network.named_parameters()}
    finished(training, tmp_path / "state.pt")
    unchanged = {name for name, tensor in training.network.named_parameters() if torch.equal(tensor, before[name])}
    assert not {name for name in unchanged if not any(part in name for part in UNUSED)}


def test_embeddings_of_unused_words_stay_zero(tmp_path):
    training = finished(Training(PLAN, CPU, TINY), tmp_path / "state.pt")
    language = training.network.backbone.language_backbone
    embedding = language.encoder.token_embedding.weight
    used = used_tokens(training.network)[:, 0].bool()
    assert 20 < used.sum() < 100
    assert (embedding[~used] == 0).all()
    assert (embedding[used].abs().sum(dim=1) > 0).all()


def test_the_engine_loads_the_checkpoint(tmp_path):
    training = finished(Training(PLAN, CPU, TINY), tmp_path / "state.pt")
    training.write_checkpoint(tmp_path / "trained.pt")
    model = load_model(tmp_path / "trained.pt", CPU, torch.float32)
    for name, tensor in model.network.state_dict().items():
        averaged = training.average.module.state_dict()[name]
        assert torch.allclose(tensor.to(averaged.dtype), averaged, rtol=1e-3, atol=1e-6), name
    predictor = Predictor(model)
    embedding = predictor.encode_image(np.zeros((50, 60, 3), np.uint8))
    assert len(predictor.segment(embedding, ConceptPrompt(("star",)), Options(confidence_threshold=0))) == TINY.queries

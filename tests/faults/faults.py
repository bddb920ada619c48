"""Faults that the tests have to see: small ones, such as people make, in every part of the program.

A fault is found by the text that it replaces, and a test file by the end of its path, so both may move. When the text
itself is rewritten, its fault has to be rewritten too; tests/test_faults.py fails until it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """What is wrong, in a sentence, and the texts that are replaced. Each occurs once, in one source file.

    `seen_by` maps each test file, named by the end of its path, to the expression (pytest's -k) that selects the tests;
    "" selects all of them. Every one of these files has to see the fault.
    """

    name: str
    what: str
    changes: Mapping[str, str]
    seen_by: Mapping[str, str]


# Draws.
DRAWS = (
    Fault(
        "philox-without-domain",
        "Views, order and schedule draw from one stream.",
        {"np.array([counter, plane, domain, 0], dtype=np.uint64)": "np.array([counter, plane, 0, 0], dtype=np.uint64)"},
        {"test_philox.py": ""},
    ),
    Fault(
        "philox-overlapping-rows",
        "A row begins at its number instead of its number times its length.",
        {"start * steps_per_row, (stop - start) * steps_per_row": "start, (stop - start) * steps_per_row"},
        {"test_philox.py": ""},
    ),
    Fault(
        "block-view-by-position",
        "Views are given to samples in turn instead of block by block.",
        {
            "below(raw, num_views).repeat(block_rows)[:num_samples]": (
                "np.tile(below(raw, num_views), block_rows)[:num_samples]"
            )
        },
        {"test_schedules.py": ""},
    ),
    Fault(
        "cycle-from-the-second",
        "The first epoch shows the second view.",
        {"(num_samples,), epoch % num_views,": "(num_samples,), (epoch + 1) % num_views,"},
        {"test_schedules.py": "cycle"},
    ),
    Fault(
        "window-rounded-up",
        "A window holds one block more than its samples need.",
        {
            "np.arange(num_blocks) // max(1, window // block_rows)": (
                "np.arange(num_blocks) // (1 + window // block_rows)"
            )
        },
        {"test_schedules.py": "window"},
    ),
)

# Recipes, decoding and sources.
IMAGES = (
    Fault(
        "mirrored-crop-from-the-wrong-side",
        "A mirrored image is cropped at the place for the unmirrored one.",
        {"torch.where(flip_B == 1, 2 * self.padding - dx_B, dx_B)": "dx_B"},
        {"test_crop_flip.py": ""},
    ),
    Fault(
        "rows-and-columns-swapped",
        "A crop's two offsets are swapped.",
        {
            "[position_B // self.num_offsets, position_B % self.num_offsets, flip_B]": (
                "[position_B % self.num_offsets, position_B // self.num_offsets, flip_B]"
            )
        },
        {"test_crop_flip.py": "golden"},
    ),
    Fault(
        "box-never-at-the-lower-edge",
        "The last place where a box can lie is never drawn.",
        {"top * (height - box_height + 1) >> BITS": "top * (height - box_height) >> BITS"},
        {"test_random_resized_crop.py": ""},
    ),
    Fault(
        "one-crop-for-all-views",
        "A photograph's draws depend on its index and no longer on the view.",
        {"Domain.VIEW, view_B, index_B, 4 *": "Domain.VIEW, view_B * 0, index_B, 4 *"},
        {"test_random_resized_crop.py": "draws"},
    ),
    Fault(
        "rows-always-first",
        "Batches in memory are resized along rows first, where Pillow resizes along columns first.",
        {"found[length, tried] = ~rows_fit": "found[length, tried] = False"},
        {"test_random_resized_crop.py": "batch_in_memory"},
    ),
    Fault(
        "colours-in-one-order",
        "Brightness, contrast, saturation and hue are always changed in this order.",
        {"below(draws_BD[:, 1], len(_ORDERS))": "below(draws_BD[:, 1], 1)"},
        {"test_operations.py": "orders"},
    ),
    Fault(
        "other-boxes-for-a-larger-teacher",
        "The boxes that are erased at another size are drawn anew for that size.",
        {'"side": settings.get("side", before)': '"side": after'},
        {"test_operations.py": "another_size"},
    ),
    Fault(
        "another-filter",
        "Photographs are resized with a filter that differs from the one in the identity.",
        {"photo.resize(cut.size, PILLOWS[interpolation])": "photo.resize(cut.size, Image.Resampling.BICUBIC)"},
        {"images/test_photographs.py": "pixels_are"},
    ),
    Fault(
        "one-bad-file-too-many",
        "One more unreadable file is skipped than was allowed.",
        {"len(self.unreadable) > self._allow_bad": "len(self.unreadable) > self._allow_bad + 1"},
        {"images/test_photographs.py": "bad or black or decoded"},
    ),
    Fault(
        "suffixes-in-lower-case-alone",
        "Files that end in .JPEG are not seen.",
        {"os.fsdecode(name).lower().endswith(SUFFIXES)": "os.fsdecode(name).endswith(SUFFIXES)"},
        {"test_image_folder.py": ""},
    ),
    Fault(
        "sorted-shards-are-taken",
        "Shards whose samples are sorted by label pass.",
        {"if distinct - 1 < LEAST_MIXED * (shuffled - 1)": "if distinct < LEAST_MIXED"},
        {"test_tar_shards.py": "sorted"},
    ),
    Fault(
        "lonely-members-are-taken",
        "A sample without a label is left out silently.",
        {"if not lonely and (self.images or not": "if (self.images or not"},
        {"test_tar_shards.py": "silence or incomplete"},
    ),
    Fault(
        "one-partner-for-all-views",
        "The partner of a sample depends on its group and no longer on the view.",
        {"Domain.MIX_PARTNER, view_B, group_B": "Domain.MIX_PARTNER, 0 * view_B, group_B"},
        {"recipes/test_mixing.py": "uniform"},
    ),
    Fault(
        "weight-of-the-whole-box",
        "A label weighs as if no part of the box were cut off at the image's edge.",
        {"(height * width - area_B).float() / (height * width)": "kept_B.float() / WHOLE"},
        {"recipes/test_mixing.py": "weighs", "test_mixed_batches.py": "weigh"},
    ),
    Fault(
        "boxes-of-another-size-drawn-anew",
        "A teacher that sees larger images sees another part of the partner.",
        {"self.mixing and replace(self.mixing, drawn_at=self.shape)": "self.mixing"},
        {"recipes/test_mixing.py": "another_size"},
    ),
    Fault(
        "labels-of-the-own-image-alone",
        "The second label of a mixed image is that of the first image.",
        {"labels_N[mixed.partner_B.to(device)]": "labels_N[index_B.to(device)]"},
        {"test_mixed_batches.py": "labels"},
    ),
    Fault(
        "batches-across-groups",
        "Batches of a block end wherever they are full, so that files are decoded twice.",
        {"stop = stop // group * group": "pass"},
        {"test_mixed_images.py": "caching"},
    ),
)

# The cache.
CACHE = (
    Fault(
        "int8-rounds-down",
        "int8 takes the step below instead of the nearest.",
        {"np.rint((exact - offset": "np.floor((exact - offset"},
        {"test_codecs.py": "bound or step"},
    ),
    Fault(
        "tail-shared-by-all",
        "top-k shares the tail's mass among all classes.",
        {"self.temperature * float(np.log(num_classes - self.k))": "self.temperature * float(np.log(num_classes))"},
        {"test_codecs.py": "top_k"},
    ),
    Fault(
        "halved-bound",
        "The bound of int8 is half of what it has to be.",
        {"np.asarray(scale / 2 + slack)": "np.asarray(scale / 4 + slack)"},
        {"test_codecs.py": "bound or step"},
    ),
    Fault(
        "another-fill",
        "Missing values are read as zeros, which are valid logits.",
        {'return float("nan") if np.dtype(dtype).kind == "f" else 0': "return 0"},
        {"test_golden.py": "byte"},
    ),
    Fault(
        "chunk-not-checked",
        "A chunk's values are not compared with its checksum.",
        {"if crc32c(content) != RESIDUE": "if len(content) < CHECKSUM.size"},
        {"test_store.py": "flipped"},
    ),
    Fault(
        "keys-from-zero-in-every-shard",
        "A shard's rows are numbered within the shard.",
        {"np.arange(block.start, block.stop, dtype=np.int32)": "np.arange(len(block), dtype=np.int32)"},
        {"test_golden.py": "byte"},
    ),
    Fault(
        "rename-before-flush",
        "A file gets its name before its bytes have reached the disk.",
        {
            "                _flush(stream)\n            if replace:": (
                "                stream.flush()\n            if replace:"
            )
        },
        {"test_atomic.py": "reach_the_disk"},
    ),
    Fault(
        "litter-of-failed-writes",
        "A write that fails leaves its partial file.",
        {
            "                partial.unlink(missing_ok=True)\n            raise": (
                "                pass\n            raise"
            )
        },
        {"test_atomic.py": "litter or full_disk or exception"},
    ),
    Fault(
        "later-writers-win",
        "Later writers overwrite a block that exists.",
        {
            "made = self._storage.put(key, content, replace=False)": (
                "made = self._storage.put(key, content, replace=True)"
            )
        },
        {"test_store.py": "first_writer or threads"},
    ),
    Fault(
        "any-size-is-present",
        "A truncated object counts as written.",
        {
            "if any(sizes.get(key) != size for name in names for key, size in": (
                "if any(key not in sizes for name in names for key, size in"
            )
        },
        {"test_store.py": "truncated"},
    ),
    Fault(
        "presence-from-values",
        "A stored block counts as damaged if all of its values are 0.",
        {
            "                contents[key], entries[key] = content, entry": (
                "                if not any(content[:-4]):\n"
                '                    raise CacheDamaged("all of it is 0")\n'
                "                contents[key], entries[key] = content, entry"
            )
        },
        {"test_store.py": "zeros"},
    ),
    Fault(
        "index-without-seal",
        "The index's checksum is not compared.",
        {'raise ValueError("its checksum is not that of its content")': "pass"},
        {"test_store.py": "index"},
    ),
    Fault(
        "another-block-in-its-place",
        "An intact block in the place of another one passes.",
        {"        if actual != checksum:\n": "        if actual < 0:\n"},
        {"test_store.py": "copied"},
    ),
    Fault(
        "cached-pixels-not-compared",
        "A writer adds signals of pixels that differ from those that were cached.",
        {'wrong = np.flatnonzero(stored[""] != witness)': "wrong = np.flatnonzero(witness != witness)"},
        {"test_store.py": "pixels_compared"},
    ),
    Fault(
        "another-teachers-signals",
        "Signals of another teacher are added under the first one's name.",
        {"if added and name not in other.signals:": "if added and name in other.signals:"},
        {"test_signals.py": "adding_signals"},
    ),
    Fault(
        "fewer-views-wanted",
        "Asking for fewer views than a cache has shrinks it.",
        {"if other.num_views < self.num_views:": "if other.num_views < 0:"},
        {"test_elastic.py": "more_views"},
    ),
)

# The stream and stage one.
STREAM = (
    Fault(
        "labels-by-view",
        "A row gets the label of the sample whose index is the row's view.",
        {"return Labels(labels_N[index_B.to(device)])": "return Labels(labels_N[view_B.to(device)])"},
        {"test_stream.py": "joined"},
    ),
    Fault(
        "wrong-view-ahead",
        "While a view trains, the one after the next is read.",
        {"(view + 1) % self.num_views": "(view + 2) % self.num_views"},
        {"test_stream.py": "streamed"},
    ),
    Fault(
        "twice-the-memory",
        "Four windows of blocks are held instead of two.",
        {"capacity = 2 * max(1, window //": "capacity = 4 * max(1, window //"},
        {"test_stream.py": "windows_are_in_memory"},
    ),
    Fault(
        "forgotten-at-its-last-use",
        "A block is forgotten when it is used for the last time instead of afterwards.",
        {"if self._last[item] < position": "if self._last[item] <= position"},
        {"test_read_ahead.py": ""},
    ),
    Fault(
        "rows-lost-between-processes",
        "Rows that are left over when a batch is divided among the processes belong to none.",
        {"start + rows * rank // world_size": "start + rows // world_size * rank"},
        {"test_stream.py": "shares"},
    ),
    Fault(
        "half-of-the-witnesses",
        "Pixels whose checksum is smaller than the cached one pass.",
        {"np.flatnonzero(got != expected)": "np.flatnonzero(got > expected)"},
        {"test_stream.py": "noticed"},
    ),
    Fault(
        "views-before-indices",
        "A unit's keys are ordered view by view, so that rows get mixed up between views.",
        {
            "view_V.repeat(len(index_B)), index_B.repeat_interleave(len(view_V))": (
                "view_V.repeat_interleave(len(index_B)), index_B.repeat(len(view_V))"
            )
        },
        {"test_write.py": "together_leave_no_trace"},
    ),
    Fault(
        "last-block-not-asked",
        "Errors in writing the last blocks are ignored.",
        {"        for write in writes:\n            write.result()": "        writes.clear()"},
        {"test_write.py": "last_block"},
    ),
)

# A step of training, and the loop around it.
TRAINING = (
    Fault(
        "kept-gradient-shrinks",
        "The projection has the wrong sign.",
        {"_foreach_mul(list(g1.values()), 1 - c)": "_foreach_mul(list(g1.values()), 1 + c)"},
        {"test_gradients.py": "textbook"},
    ),
    Fault(
        "projected-without-conflict",
        "Gradients that agree are projected too.",
        {"self.dot.clamp(max=0) / self.norm1_squared": "self.dot / self.norm1_squared"},
        {"test_gradients.py": "textbook"},
    ),
    Fault(
        "projected-before-averaging",
        "Each process projects its own gradient, and the results are averaged.",
        {
            (
                "    if average is not None:\n        for gradient in gradients:\n"
                "            average(list(gradient.values()))\n"
            ): "",
            "    for i, summed in total.items():\n        parameters[i].grad = summed": (
                "    if average is not None:\n        average(list(total.values()))\n"
                "    for i, summed in total.items():\n        parameters[i].grad = summed"
            ),
        },
        {"test_gradients.py": "averaging or averaged"},
    ),
    Fault(
        "coefficient-a-step-late",
        "The coefficient is computed in the last of the steps that it serves.",
        {"step % alignment.every == 0": "(step + 1) % alignment.every == 0"},
        {"test_loop.py": "coefficient"},
    ),
    Fault(
        "update-before-the-look",
        "A loss that is not finite is noticed only after the update.",
        {"if self._look_every == 1:": "if self._look_every == 0:"},
        {"test_loop.py": "not_finite"},
    ),
    Fault(
        "shares-weigh-alike",
        "Processes of unequal shares count alike in the gradient's mean.",
        {"else len(part.index_B) * world_size / part.global_size": "else 1.0"},
        {"test_golden_losses.py": "kd-two"},
    ),
    Fault(
        "last-part-alone-is-aligned",
        "Of a batch in parts, the aligned gradient is that of the last part.",
        {"added(gradients, of_part) if gradients else of_part": "of_part"},
        {"test_accumulation.py": "projection"},
    ),
    Fault(
        "memory-in-parts",
        "CRD computes a batch in parts, of which each remembers the ones before it.",
        {"    remembers_rows = True\n": ""},
        {"test_accumulation.py": "refused"},
    ),
    Fault(
        "one-rate-for-all-layers",
        "The schedule forgets the layers' factors.",
        {'group["lr"] = rate * group.get(SCALE, 1.0)': 'group["lr"] = rate'},
        {"test_parameter_groups.py": "rates"},
    ),
    Fault(
        "muon-loads-nothing",
        "The two optimizers of muon go on with the state from before a checkpoint was loaded.",
        {"(state_dict)\n        self._share()\n": "(state_dict)\n"},
        {"test_optimizers.py": "every_optimizer_of_torch_resumes"},
    ),
    Fault(
        "one-dropout-for-all",
        "All processes draw the same dropout.",
        {"dropout_seed(self._seed, step_of_run, self._processes.rank)": "dropout_seed(self._seed, step_of_run, 0)"},
        {"test_golden_losses.py": "dhkd-two"},
    ),
    Fault(
        "sums-for-means",
        "Aligned gradients are summed over the processes instead of averaged.",
        {"        flat /= self.world_size\n": ""},
        {"test_golden_losses.py": "dhkd-two"},
    ),
    Fault(
        "milestone-an-epoch-late",
        "The rate falls an epoch after its milestone.",
        {"sum(milestone <= epoch for": "sum(milestone < epoch for"},
        {"test_learning_rate.py": ""},
    ),
    Fault(
        "momentum-forgotten",
        "A resumed run begins without its optimizer's momentum.",
        {'        optimizer.load_state_dict(checkpoint["optimizer"])\n': ""},
        {"test_loop.py": "resumed"},
    ),
    Fault(
        "metrics-twice",
        "When a run is resumed, lines that were written after its checkpoint stay.",
        {"os.truncate(path, min(length, path.stat().st_size))": "os.truncate(path, path.stat().st_size)"},
        {"test_folder.py": "metrics"},
    ),
    Fault(
        "run-written-over",
        "A run is trained into a folder that holds another run.",
        {
            "        if not resume:\n            raise RunExists(": (
                "        if resume is None:\n            raise RunExists("
            )
        },
        {"test_bad_input.py": "never_overwritten"},
    ),
)

# Objectives.
OBJECTIVES = (
    Fault(
        "kd-without-square",
        "KD is multiplied by the temperature instead of its square.",
        {"return temperature**2 * divergence": "return temperature * divergence"},
        {"test_losses.py": "definition"},
    ),
    Fault(
        "binary-kl-norm-of-the-whole",
        "BinaryKL-Norm takes log cosh of the whole difference instead of half of it.",
        {"_log_cosh(difference_BK / (2 * temperature))": "_log_cosh(difference_BK / temperature)"},
        {"test_losses.py": "definition"},
    ),
    Fault(
        "dist-rows-twice",
        "DIST correlates rows twice and columns never.",
        {"correlation_distance(student_BK.T, teacher_BK.T)": "correlation_distance(student_BK, teacher_BK)"},
        {"train/test_methods.py": "dist or paper"},
    ),
    Fault(
        "crd-remembers-the-rest",
        "CRD's momentum weights the new embedding instead of the old one.",
        {
            "self._momentum * remembered[index_B] + (1 - self._momentum) * embedding_BD": (
                "(1 - self._momentum) * remembered[index_B] + self._momentum * embedding_BD"
            )
        },
        {"test_adapters.py": ""},
    ),
    Fault(
        "alpha-an-epoch-longer",
        "DHKD's alpha ends an epoch late.",
        {"epoch >= self.alpha_epochs": "epoch > self.alpha_epochs"},
        {"test_objectives.py": "alpha"},
    ),
    Fault(
        "top-four",
        "Top-5 accuracy counts four classes.",
        {"logits_BK.topk(min(5, logits_BK.shape[1])": "logits_BK.topk(min(4, logits_BK.shape[1])"},
        {"test_evaluate.py": ""},
    ),
)

# Sweeps, reports, and what the user enters.
AROUND = (
    Fault(
        "failed-runs-again",
        "A sweep retries failed runs without being asked to.",
        {"and (again or not (run / FAILED).exists())": ""},
        {"e2e/test_sweep.py": "fails"},
    ),
    Fault(
        "one-degree-of-freedom-more",
        "Intervals over seeds are too narrow.",
        {"_within(angle, freedom) < CONFIDENCE": "_within(angle, freedom + 1) < CONFIDENCE"},
        {"test_statistics.py": ""},
    ),
    Fault(
        "baseline-minus-run",
        "Differences have the wrong sign.",
        {"value - baseline[seed] for": "baseline[seed] - value for"},
        {"test_statistics.py": ""},
    ),
    Fault(
        "numbers-as-text",
        "Rows are sorted letter by letter.",
        {'(float(part), "") if position % 2 else (0.0, part)': "(0.0, part)"},
        {"test_comparison.py": ""},
    ),
    Fault(
        "tail-mass-of-all",
        "A top-k cache is reported as if it held every logit.",
        {"if bound.tail_mass is not None:": "if False:"},
        {"tables/test_cache.py": "top_k"},
    ),
    Fault(
        "exponents-are-words",
        "1e-3 in a preset is a word.",
        {r'r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"': r'r"[-+]?\d+\.\d+[eE][-+]?\d+$"'},
        {"test_load.py": "numbers"},
    ),
    Fault(
        "a-bare-word-forgets",
        "A bare word for a section resets its other fields.",
        {
            "{**(existing if isinstance(existing, dict) else {}), section.main_field: value}": (
                "{section.main_field: value}"
            )
        },
        {"test_load.py": "bare_word"},
    ),
    Fault(
        "every-error-is-a-failure",
        "Wrong settings end with code 1 instead of 2.",
        {"_failed(str(error), error.exit_code, debug)": "_failed(str(error), 1, debug)"},
        {"test_bad_input.py": "refuses and epochs or nearest_preset"},
    ),
    Fault(
        "cache-pays-too-early",
        "The cache is said to pay off when it costs just as much.",
        {"return views // epochs + 1": "return -(-views // epochs)"},
        {"pipeline/test_plan.py": "costs_less"},
    ),
    Fault(
        "forwards-without-views",
        "A plan counts the teacher's forwards for one view only.",
        {"forwards, row = data.samples * views,": "forwards, row = data.samples,"},
        {"pipeline/test_plan.py": "cifar100"},
    ),
)

# Networks, data, teachers and code of users.
BROUGHT = (
    Fault(
        "code-runs-unasked",
        "A file runs because a preset names it.",
        {
            "    path = _real(place)\n    if path in _known.files:": (
                "    path = _real(place)\n    _load_file(place)\n    if path in _known.files:"
            )
        },
        {"attacks/test_own_code.py": "run_no_code"},
    ),
    Fault(
        "changed-code-is-taken",
        "Code that has changed since it was recorded goes on without a word.",
        {"    if not _known.allow_changed:": "    if not changed:"},
        {"attacks/test_own_code.py": "refused_until_allowed"},
    ),
    Fault(
        "held-out-samples-train",
        "The held-out part stays in the training set.",
        {"torch.nonzero(~is_held_N)": "torch.nonzero(is_held_N | ~is_held_N)"},
        {"attacks/test_labels.py": "part"},
    ),
    Fault(
        "held-out-without-a-seed",
        "Every seed holds out the same part.",
        {"raw_rows(seed, Domain.HELD_OUT, SAMPLES,": "raw_rows(0, Domain.HELD_OUT, SAMPLES,"},
        {"attacks/test_labels.py": "own_seed_alone"},
    ),
    Fault(
        "green-as-red",
        "Red weighs as much as green in grey.",
        {"(red * RED + green * GREEN": "(red * GREEN + green * RED"},
        {"attacks/test_labels.py": "as_pillow_converts"},
    ),
    Fault(
        "teacher-size-unrecorded",
        "A cache doesn't record the size at which its teacher saw the views.",
        {"return size if classes is None else": "return {} if classes is None else"},
        {"attacks/test_teachers.py": "another_size_is_refused"},
    ),
    Fault(
        "outputs-in-their-own-order",
        "A teacher's outputs are chosen, but not put into the order of the classes.",
        {"outputs.logits[:, self.output_K]": "outputs.logits[:, self.output_K.sort().values]"},
        {"attacks/test_teachers.py": "right_outputs_arrive"},
    ),
    Fault(
        "class-token-in-the-map",
        "A map of tokens begins with the class token.",
        {"tensor[:, tensor.shape[1] - rows * columns :]": "tensor[:, : rows * columns]"},
        {"attacks/test_networks.py": "class_token"},
    ),
    Fault(
        "axes-of-arrays-swapped",
        "Images of shape (N, H, W, C) are turned by a quarter.",
        {
            "        images = images.permute(0, 3, 1, 2)\n    return images if": (
                "        images = images.permute(0, 3, 2, 1)\n    return images if"
            )
        },
        {"test_as_people_have_it.py": "pixels"},
    ),
)

# What regularizes a training.
REGULARIZING = (
    Fault(
        "average-begins-with-random-weights",
        "The first update of the average keeps a share of the initial weights.",
        {"        if update == 1:\n            return 0.0\n": ""},
        {"train/test_ema.py": "transcription"},
    ),
    Fault(
        "average-resumes-at-its-first-step",
        "A resumed average starts to count its steps anew.",
        {"        self._steps = steps\n": "        self._steps = 0\n"},
        {"train/test_ema.py": "resumed"},
    ),
    Fault(
        "average-of-each-process",
        "Each process tests the average of its own running statistics.",
        {"self._processes.share(ema.tensors())": "self._processes.share(ema.tensors()[:0])"},
        {"e2e/test_regularized.py": ""},
    ),
    Fault(
        "smoothing-is-lost",
        "Cross-entropy doesn't look at the smoothing of the labels.",
        {"labels, labels.smoothing)": "labels, 0.0)"},
        {"train/test_combined.py": "smoothed_labels", "build/test_regularizing.py": "smoothing_is_that"},
    ),
    Fault(
        "a-tie-is-a-gain",
        "An epoch that is as good as the best resets the patience.",
        {"if value - self.min_delta > best:": "if value - self.min_delta >= best:"},
        {"train/test_early_stopping.py": "rule"},
    ),
    Fault(
        "patience-of-one-more",
        "Training ends an epoch late.",
        {">= self.patience": "> self.patience"},
        {"train/test_early_stopping.py": "rule"},
    ),
    Fault(
        "statistics-count-twice",
        "What is computed again in the backward pass updates the running statistics again.",
        {"if torch._C._current_graph_task_id() == -1:": "if torch._C._current_graph_task_id() > -2:"},
        {"models/test_checkpointing.py": "networks"},
    ),
    Fault(
        "calls-of-dropout-are-not-seen",
        "Students whose dropout is a call train side by side.",
        {"network.train().outputs(images_BCHW)": "network.outputs(images_BCHW)"},
        {"models/test_dropping.py": "draws"},
    ),
)

# Policies: operations drawn at random.
POLICIES = (
    Fault(
        "signs-of-one-kind",
        "Signed operations always go in one direction.",
        {"return operation_BS * 2 + sign_BS": "return operation_BS * 2 + sign_BS * 0"},
        {"test_policies.py": "randaugment_draws"},
    ),
    Fault(
        "probability-of-the-other",
        "The operations of a pair have each other's probabilities.",
        {"probability_NS[sub_policy_B] << BITS": "probability_NS.flip(1)[sub_policy_B] << BITS"},
        {"test_policies.py": "applies_by_their_probabilities"},
    ),
    Fault(
        "images-not-put-back",
        "After a policy, images stay in the order of their operations.",
        {"return pixels_BCHW.index_select(0, order_B.argsort()) if batch > 1": "return pixels_BCHW if batch > 1"},
        {"test_policies.py": "order_change_no_bytes", "test_augmented.py": "same_bytes"},
    ),
    Fault(
        "rotated-around-the-last-pixel",
        "A map takes the corner of a pixel for its centre.",
        {"c, f = c + (a + b) / 2, f + (d + e) / 2": "c, f = c + Fraction(1, 2), f + Fraction(1, 2)"},
        {"test_policies.py": "pixels_of_each_operation and 3-32-32"},
    ),
    Fault(
        "whole-products-cut",
        "A factor's rounding takes a grey level from products that are whole numbers.",
        {"_TOLERANCE = 1 << BITS - 12": "_TOLERANCE = -(1 << BITS - 5)"},
        {"test_policies.py": "pixels_of_each_operation and 3-32-32"},
    ),
)

FAULTS = (*DRAWS, *IMAGES, *CACHE, *STREAM, *TRAINING, *OBJECTIVES, *BROUGHT, *AROUND, *REGULARIZING, *POLICIES)

"""Cases that take long and run with the slow tests: their siblings in the same file stay fast.

Names are node ids below tests/. `make test-slow` runs these, `make test` leaves them out.
"""

LONG_CASES = {
    "test_loop.py::test_two_kills_change_nothing",
    "rollout/test_sampler.py::test_calls_dispatched_ahead_go_on_in_a_smaller_bucket",
    "rollout/test_sampler.py::test_xla_kernels_agree_with_native_ones[roomy]",
    "rollout/test_sampler.py::test_500_random_prompts_leave_no_page_behind",
    "rollout/test_sampler_mesh.py::test_a_shard_of_few_rows_goes_on_beside_a_full_one[plain]",
    "rollout/test_sampler_mesh.py::test_a_shard_of_few_rows_goes_on_beside_a_full_one[ahead]",
    "rollout/test_sampler_mesh.py::test_tokens_and_log_probs_are_those_of_one_device[4x2]",
    "rollout/test_schedules.py::test_300_schedules",
    "rollout/test_shard_simulation.py::test_knowing_the_lengths_beforehand_pays",
    "rollout/test_request.py::test_the_prompts_log_probs_are_the_trainers[4]",
    "rollout/test_transfers.py::test_a_warm_sampler_sends_and_reads_at_the_named_points_alone[ahead]",
    "rollout/test_engine.py::test_temporaries_do_not_grow_with_the_pool[decode-pages]",
    "rollout/native/test_build.py::test_a_cache_that_cannot_be_written_is_done_without",
    "rollout/native/test_build.py::test_a_user_without_a_home_needs_none",
    "models/test_family_in_use.py::test_the_update_is_the_plain_one_on_a_device_and_on_a_mesh[llama]",
    "models/test_family_in_use.py::test_the_sampler_draws_from_the_dense_model[olmo2-xla-2]",
    "models/test_family_in_use.py::test_the_sampler_draws_from_the_dense_model[llama-xla-1]",
    "models/heads/test_logprobs.py::test_near_temperature_0_the_likeliest_token_is_certain[0.0001]",
    "models/heads/test_logprobs.py::test_near_temperature_0_the_likeliest_token_is_certain[0.05]",
    "sharding/test_sharding.py::test_eight_devices_give_the_parameters_of_one[data1-fsdp2-context1-tensor4-qwen3]",
    "sharding/test_sharding.py::test_eight_devices_give_the_parameters_of_one[data1-fsdp2-context2-tensor2-qwen2]",
    "sharding/test_sharding.py::test_eight_devices_give_the_parameters_of_one[data2-fsdp4-context1-tensor1-qwen2]",
    "sharding/test_sharding.py::test_layer_inputs_in_host_memory_leave_the_gradient[mesh]",
    "train/test_update.py::test_stacked_microbatches_are_those_of_one_call_each[mesh]",
    "train/test_update.py::test_permuting_and_repacking_leaves_the_gradient[48-8-layer]",
    "train/test_update.py::test_permuting_and_repacking_leaves_the_gradient[64-2-none]",
    "checkpoint/test_step_folders.py::"
    "test_an_end_before_any_change_leaves_a_whole_one[9-same step]",
    "reward/test_hostile.py::test_no_pattern_explodes",
    "plan/test_refusals.py::test_refused_with_the_nearest_setting_that_fits[eight rows a device]",
    "plan/test_refusals.py::test_refused_with_the_nearest_setting_that_fits[a pool over the HBM]",
    "test_identity.py::test_what_calibrate_curated_is_trained_on_also_where_the_problems_are_named",
    "rollout/test_transfers.py::test_a_warm_sampler_sends_and_reads_at_the_named_points_alone[2x2]",
    "rollout/test_shard_simulation.py::test_the_plan_says_what_the_simulation_says",
    "rollout/native/test_build.py::test_it_is_compiled_once_and_mended_when_damaged",
    "rollout/kv/test_staged.py::"
    "test_steps_equal_dense_attention_and_leave_their_tokens_in_the_pages[16]",
    "models/test_family_in_use.py::test_the_update_is_the_plain_one_on_a_device_and_on_a_mesh[olmo2]",
    "models/test_decoder.py::test_scan_unroll_and_remat_agree_in_value_and_gradient",
    "models/heads/test_logprobs.py::test_near_temperature_0_the_likeliest_token_is_certain[1e-30]",
    "models/heads/test_counted_tokens.py::"
    "test_loss_and_gradient_are_those_of_the_head_everywhere[none-5]",
    "sharding/test_sharding.py::"
    "test_tiled_attention_and_remat_on_a_mesh_give_the_parameters_of_one_device",
    "sharding/test_sharding.py::test_at_the_recipes_eps_only_near_zero_gradients_move_otherwise",
    "sharding/test_sharding.py::test_layer_inputs_in_host_memory_leave_the_gradient[one]",
    "sharding/test_sharding.py::test_shards_of_many_chunks_give_the_gradient_of_one_device",
    "rollout/test_sampler_mesh.py::test_the_samples_of_one_prompt_use_every_shard",
    "train/test_shared_prompts.py::test_chunked_gives_that_gradient_too",
    "train/test_state.py::test_moments_in_host_memory_change_where_they_lie_and_nothing_else",
    "checkpoint/test_checkpointer.py::"
    "test_a_kill_at_any_moment_of_a_save_leaves_a_whole_one[same step]",
    "checkpoint/test_step_folders.py::test_an_end_before_any_change_leaves_a_whole_one[9-new step]",
    "plan/test_command.py::test_a_sampler_that_the_product_refuses_names_pages_that_fit",
    "test_identity.py::test_two_of_a_command_do_not_write_the_same_files",
}

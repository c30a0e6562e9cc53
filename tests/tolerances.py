"""Every tolerance of the suite, each with its reason. None is loosened to get a test green."""

# Two fp32 programs that sum the same terms in another order: relative to the largest gradient
# entry of the tensor (max|dg| <= 1e-5 max|g|).
GRADIENT_RTOL = 1e-5

# A sum over all tokens (loss, entropy, gradient norm) by two fp32 programs: the gradient's bound.
LOSS_RTOL = 1e-5

# Advantages are computed in float64 and stored in float32, with |advantage| below 8.
ADVANTAGE_ATOL = 1e-6

# Share of slipped results among about 9,000 correlated draws (binomial deviation 0.005 at 0.3,
# about twice that because a text keeps its hand) and a slip that is not allowed now and then.
SLIP_RATE_ATOL = 0.03

# The per-token loss in float32 against numpy in float64: a dozen roundings, ratios up to 20.
OBJECTIVE_RTOL = 2e-5

# A mean or a ratio of small integers in float64, computed twice in another order.
CLOSED_FORM_ATOL = 1e-12

# Eight devices against one, or two processes: max|d params| <= 0.05 x learning rate x steps, where
# Adam's eps lies above the rounding of the gradients.
SHARDED_PARAMS_LR_SHARE = 0.05

# Adam's first step is g / (|g| + eps): where eps lies below the gradients' rounding (up to
# GRADIENT_RTOL of the tensor's largest), an entry under this share of the largest may differ by
# more than SHARDED_PARAMS_LR_SHARE of a step. Such entries stay under NEAR_ZERO_SHARE of all: one
# in ten thousand (measured: none in 36,000 on four meshes).
NEAR_ZERO_GRADIENT = GRADIENT_RTOL / SHARDED_PARAMS_LR_SHARE
NEAR_ZERO_SHARE = 1e-4

# bfloat16 keeps 8 bits: activations and their gradients differ by about 2^-8 an operation, and a
# leaf's largest entry by a few of them.
BF16_GRADIENT_RTOL = 0.1

# The same log-prob by two fp32 programs (packed or not): sums of some hundred terms near 1.
LOGPROB_ATOL = 1e-5

# A loss weight is one division rounded to float32; a sum of them averages that out.
WEIGHT_RTOL = 1e-6

# Sampler against trainer in fp32: another order of sums in attention and head, logits up to 30.
SAMPLER_LOGPROB_ATOL = 1e-4

# One sampler on another schedule (rows, pages, preemption), the design's bound; measured 2.4e-6
# between 8 and 16 rows, 4.8e-6 where a preempted row is prefilled instead of decoded.
SCHEDULE_LOGPROB_ATOL = 1e-5

# A larger difference is rounding if the log-prob is ill-conditioned: if changing the last bit of
# each weight moves it as far. The limit is this number of standard deviations of those changes.
# Measured in 5,020 requests: 1.8 (a difference of 1.5e-5, a deviation of 8.4e-6).
LAST_BIT_DEVIATIONS = 3.0

# Two tokens whose scores (running probability against the uniform, or greedy logits) lie this close
# may swap by rounding; such swaps stay under this share of all tokens.
NEAR_TIE = 1e-4
NEAR_TIE_SHARE = 1e-4

# Attention over pages against dense attention: softmax of unit-size scores, fp32.
ATTENTION_ATOL = 2e-6

# A product of float32 matrices against float64, relative to the sum of the terms' magnitudes: a
# thousand roundings of 6e-8, which mostly cancel.
PRODUCT_RTOL = 2e-6

# Logits in bfloat16 against float32, the mean gap relative to the mean logit: a few roundings of
# 2^-9 in each of two layers of the small sharp model.
BF16_LOGIT_RTOL = 0.05

# The log of a sum of 16,000 to 300,000 masses in another order: some last bits of a number near 10.
NORM_ATOL = 2e-6

# Attention with an online softmax against dense, output and gradients, relative to the tensor's
# largest entry: fp32 sums of up to a thousand terms in another order; measured up to 1.6e-6.
ATTENTION_RTOL = 5e-6

# One multiplication fused with its neighbour, or not: one unit in the last place of float32.
FUSED_RTOL = 2.5e-7

# Logits against transformers in fp32, |a-b| <= ATOL + RTOL |b|: the design's bound; two fp32
# programs on models of this size differ by some 1e-6.
PARITY_ATOL = 1e-4
PARITY_RTOL = 1e-4

# Rotary frequencies, float64 rounded once, against transformers' in float32 all the way: some five
# roundings of 6e-8; measured up to 3.6e-7 over all scalings.
ROPE_FREQUENCY_RTOL = 1e-6

# How many parity tolerances a feature must move the logits by, or the parity test could not see it.
PARITY_SENSITIVITY = 100

# SmolLM2's logits (up to about 40) against transformers: 30 layers of fp32 sums in another order.
SMOLLM2_LOGIT_ATOL = 1e-3

# Chance that 50,000 draws of a right sampler are called wrong; seeds are fixed, so a green case
# stays green, and samplers wrong by 5% in temperature or by one token lie many orders below.
CHI_SQUARE_LEVEL = 1e-3

# Processor seconds that `import polaris_jax` may add to bare Python: it imports nothing heavy
# (measured: 0.002), numpy would add 0.1 and jax 0.7.
IMPORT_S = 0.5

# Seconds of `polaris status` and `polaris show` in one new process: below the second after which a
# person waits, times the load of a machine with other tests (measured: 0.35).
STATUS_S = 4.0

# Share by which the hours that commands say may differ from those of docs/results/plan.md, which
# compiles the programs and knows their collectives and padding (measured: 0.34 on v6e, 0 on h100).
SPEED_RTOL = 0.4

# Log-probs of one sequence by two programs of a float32 model on a CPU: decoded beside other rows
# or alone, or scored in one piece without pages: sums in another order.
SERVED_LOGPROB = 1e-5

# Log-probs of one row on two schedules with 8-bit keys and values: last bits differ as without
# (SCHEDULE_LOGPROB_ATOL), and at the border of two 8-bit numbers they decide which it is.
INT8_SCHEDULE_LOGPROB_ATOL = 5e-3

# Mean |sampler - trainer| log-prob of SmolLM2 with 8-bit keys and values, in nats (measured: 0.0134
# over 811 tokens, 0.005 for keys and values in bfloat16).
SMOLLM2_INT8_GAP_MEAN = 0.02

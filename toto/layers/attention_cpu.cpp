// Backward pass of causal attention, bf16 in and out, fp32 inside, for CPUs with AMX.
//
// torch's own kernel loses most of its time between its small products (P stands for the softmax,
// O for the output, g for the gradient of O). Here one head is packed once, and all five products
// of a block of scores go through torch's brgemm while the block stands in the cache. Blocks are
// transposed, keys by queries, so that P' and dS' are left operands as they are:
//
//   S' = K Q'    P' = exp(scale S' - lse)    dP' = V g'    dS' = scale P' (dP' - delta)
//   dV = P' g    dK = dS' Q                  dQ' = K' dS'  delta = sum(g O)
//
// Axis letters as in Python: B batch, N heads, L sequence, K head size; M is L rounded up.

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace {

using at::BFloat16;
using at::native::cpublas::brgemm;

constexpr int64_t kBlock = 128;  // a block's fp32 and bf16 scores fill about 200 KB
constexpr int64_t kAlign = 32;   // the inner length of one AMX product in bf16

// [B, N, L, K] with K contiguous, or [B, N, L].
template <typename T>
struct Strided {
  T* data;
  const int64_t* stride;
  T* at(int64_t b, int64_t n, int64_t l) const {
    return data + b * stride[0] + n * stride[1] + l * stride[2];
  }
};

struct Tensors {
  Strided<const BFloat16> query, key, value, out, grad;
  Strided<const float> lse;
  Strided<BFloat16> grad_query, grad_key, grad_value;
};

// exp(x) to about 1e-7 for x below 88: 2^n times a polynomial of the rest.
__m512 exponential(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-104.f), x);  // in this order NaN stays NaN
  const __m512 y = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
  const __m512 n = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 rest = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  rest = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), rest);
  __m512 sum = _mm512_set1_ps(1.f / 720);
  for (float term : {1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1.f, 1.f})
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(term));
  return _mm512_scalef_ps(sum, n);
}

// One head's operands, zero beyond L. `rows` is [M, K], `columns` [K, M]; a `pairs` operand is the
// right side of a bf16 product, two consecutive rows interleaved: [rows / 2, columns, 2].
struct Head {
  int64_t length, size, padded;
  std::vector<BFloat16> key_rows, value_rows, key_columns;
  std::vector<BFloat16> query_pairs, grad_pairs;                  // [M / 2, K, 2]
  std::vector<BFloat16> query_column_pairs, grad_column_pairs;    // [K / 2, M, 2]
  std::vector<float> lse, delta;                                  // [M]

  Head(int64_t L, int64_t K)
      : length(L), size(K), padded((L + kAlign - 1) / kAlign * kAlign) {
    for (auto* operand : {&key_rows, &value_rows, &key_columns, &query_pairs, &grad_pairs,
                          &query_column_pairs, &grad_column_pairs})
      operand->assign(padded * size, BFloat16(0.f));
    lse.assign(padded, std::numeric_limits<float>::infinity());  // exp(score - inf) is 0
    delta.assign(padded, 0.f);
  }

  void load(const Tensors& tensors, int64_t b, int64_t n) {
    for (int64_t l = 0; l < length; ++l) {
      const BFloat16 *query = tensors.query.at(b, n, l), *key = tensors.key.at(b, n, l),
                     *value = tensors.value.at(b, n, l), *out = tensors.out.at(b, n, l),
                     *grad = tensors.grad.at(b, n, l);
      float dot = 0.f;
      for (int64_t k = 0; k < size; ++k) {
        key_rows[l * size + k] = key[k];
        value_rows[l * size + k] = value[k];
        key_columns[k * padded + l] = key[k];
        const int64_t pair = (l / 2 * size + k) * 2 + l % 2;
        query_pairs[pair] = query[k];
        grad_pairs[pair] = grad[k];
        const int64_t column_pair = (k / 2 * padded + l) * 2 + k % 2;
        query_column_pairs[column_pair] = query[k];
        grad_column_pairs[column_pair] = grad[k];
        dot += float(grad[k]) * float(out[k]);
      }
      lse[l] = *tensors.lse.at(b, n, l);
      delta[l] = dot;
    }
  }
};

// The scores of one block, [keys, queries], row length kBlock.
struct Block {
  std::vector<float> score, slope_of_prob;                  // S', dP'
  std::vector<BFloat16> prob, slope_of_score, slope_pairs;  // P', dS', and dS' in pairs

  Block()
      : score(kBlock * kBlock), slope_of_prob(kBlock * kBlock), prob(kBlock * kBlock),
        slope_of_score(kBlock * kBlock), slope_pairs(kBlock * kBlock) {}

  void differentiate(const Head& head, float scale, int64_t key, int64_t keys, int64_t query,
                     int64_t queries) {
    const __m512 scales = _mm512_set1_ps(scale);
    for (int64_t i = 0; i < keys; i += 2) {
      for (int64_t j = 0; j < queries; j += 16) {
        __m256i pair[2];
        for (int64_t odd = 0; odd < 2; ++odd) {
          const int64_t at = (i + odd) * kBlock + j;
          __m512 p = exponential(_mm512_fmsub_ps(_mm512_loadu_ps(&score[at]), scales,
                                                 _mm512_loadu_ps(&head.lse[query + j])));
          const int64_t hidden = std::clamp<int64_t>(key + i + odd - query - j, 0, 16);
          p = _mm512_maskz_mov_ps(__mmask16(0xFFFFu << hidden), p);  // queries before the key
          const __m512 change = _mm512_sub_ps(_mm512_loadu_ps(&slope_of_prob[at]),
                                              _mm512_loadu_ps(&head.delta[query + j]));
          const __m512 ds = _mm512_mul_ps(_mm512_mul_ps(p, scales), change);
          pair[odd] = (__m256i)_mm512_cvtneps_pbh(ds);
          _mm256_storeu_si256((__m256i*)&prob[at], (__m256i)_mm512_cvtneps_pbh(p));
          _mm256_storeu_si256((__m256i*)&slope_of_score[at], pair[odd]);
        }
        const __m512i even = _mm512_cvtepu16_epi32(pair[0]);
        const __m512i odd = _mm512_slli_epi32(_mm512_cvtepu16_epi32(pair[1]), 16);
        _mm512_storeu_si512(&slope_pairs[i * kBlock + 2 * j], _mm512_or_si512(even, odd));
      }
    }
  }
};

void backward_of_head(const Tensors& tensors, Head& head, Block& block, int64_t b, int64_t n) {
  const int64_t K = head.size, M = head.padded;
  const float scale = 1.f / std::sqrt(float(K));
  head.load(tensors, b, n);
  std::vector<float> grad_query(K * M, 0.f), grad_key(kBlock * K), grad_value(kBlock * K);
  for (int64_t key = 0; key < M; key += kBlock) {
    const int64_t keys = std::min(kBlock, M - key);
    for (int64_t query = key; query < M; query += kBlock) {
      const int64_t queries = std::min(kBlock, M - query);
      const bool add = query > key;
      brgemm(keys, queries, K, K, M, kBlock, false, &head.key_rows[key * K],
             &head.query_column_pairs[2 * query], block.score.data());
      brgemm(keys, queries, K, K, M, kBlock, false, &head.value_rows[key * K],
             &head.grad_column_pairs[2 * query], block.slope_of_prob.data());
      block.differentiate(head, scale, key, keys, query, queries);
      brgemm(keys, K, queries, kBlock, K, K, add, block.prob.data(),
             &head.grad_pairs[query * K], grad_value.data());
      brgemm(keys, K, queries, kBlock, K, K, add, block.slope_of_score.data(),
             &head.query_pairs[query * K], grad_key.data());
      brgemm(K, queries, keys, M, kBlock, M, true, &head.key_columns[key],
             block.slope_pairs.data(), &grad_query[query]);
    }
    for (int64_t l = key; l < std::min(key + keys, head.length); ++l) {
      std::copy_n(&grad_key[(l - key) * K], K, tensors.grad_key.at(b, n, l));
      std::copy_n(&grad_value[(l - key) * K], K, tensors.grad_value.at(b, n, l));
    }
  }
  for (int64_t l = 0; l < head.length; ++l)
    for (int64_t k = 0; k < K; ++k) tensors.grad_query.at(b, n, l)[k] = grad_query[k * M + l];
}

}  // namespace

// data and strides: query, key, value, out, grad, lse, grad_query, grad_key, grad_value;
// three strides each (B, N, L), in elements. sizes: B, N, L, K.
extern "C" void toto_causal_attention_backward(void* const* data, const int64_t* strides,
                                               const int64_t* sizes) {
  const auto input = [&](int i) {
    return Strided<const BFloat16>{static_cast<const BFloat16*>(data[i]), strides + 3 * i};
  };
  const auto output = [&](int i) {
    return Strided<BFloat16>{static_cast<BFloat16*>(data[i]), strides + 3 * i};
  };
  const Tensors tensors{input(0), input(1), input(2), input(3), input(4),
                        {static_cast<const float*>(data[5]), strides + 15},
                        output(6), output(7), output(8)};
  const int64_t N = sizes[1];
  at::parallel_for(0, sizes[0] * N, 1, [&](int64_t first, int64_t last) {
    Head head(sizes[2], sizes[3]);
    Block block;
    for (int64_t i = first; i < last; ++i) backward_of_head(tensors, head, block, i / N, i % N);
    at::native::cpublas::brgemm_release();
  });
}

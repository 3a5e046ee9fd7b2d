#include "contrastive/bindings.h"

#include <pybind11/stl.h>

#include <algorithm>

#include "contrastive/launch.h"
#include "tensor.h"

namespace py = pybind11;

namespace conan_fast {
namespace {

Element element_of(const Tensor& tensor) {
  switch (tensor.type()) {
    case ScalarType::kBf16: return Element::kBf16;
    case ScalarType::kFp16: return Element::kFp16;
    default: tensor.require_type(ScalarType::kFp32); return Element::kFp32;
  }
}

// Sizes stay below 2^30, so that kernels can add a row to own_column in 32 bits.
int size_of(const Tensor& tensor, int dimension) {
  if (tensor.size(dimension) >= -kNoOwn) tensor.fail("must have fewer than 2^30 rows");
  return static_cast<int>(tensor.size(dimension));
}

// [rows, at least the last prefix]
Vectors vectors_of(const Tensor& tensor, const Prefixes& prefixes) {
  tensor.require_rank(2).require_aligned_rows();
  if (tensor.size(1) < prefixes.last()) {
    tensor.fail("must have at least " + std::to_string(prefixes.last()) + " columns, the largest of dims, got " +
                std::to_string(tensor.size(1)));
  }
  Vectors vectors;
  vectors.data = tensor.data<void>();
  vectors.stride = tensor.size(0) == 1 ? 0 : tensor.stride(0);  // a dimension of size 1 may have any stride
  vectors.rows = size_of(tensor, 0);
  return vectors;
}

Prefixes prefixes_of(const std::vector<int>& dims) {
  Prefixes prefixes;
  prefixes.count = static_cast<int>(dims.size());
  if (dims.empty() || dims.size() > kMaxPrefixes) {
    throw py::value_error("dims must have 1 to 32 entries, got " + std::to_string(dims.size()));
  }
  for (size_t m = 0; m < dims.size(); ++m) {
    if (dims[m] % 16 != 0 || dims[m] <= (m == 0 ? 0 : dims[m - 1]) || dims[m] > kMaxFeatures) {
      throw py::value_error("dims must be rising multiples of 16, at most 8192, got " + std::to_string(dims[m]));
    }
    prefixes.dims[m] = dims[m];
  }
  return prefixes;
}

int64_t padded_to_tiles(int64_t count) { return (count + kTile - 1) / kTile * kTile; }

// Inverse norms [prefixes, at least `columns`]; its rows may be a part of those of a wider tensor.
Tensor norms_of(const CallTensors& tensors, const char* name, const Capsule& capsule, int prefixes, int64_t columns) {
  const Tensor norms = tensors.tensor(name, capsule, ScalarType::kFp32).require_rank(2);
  if (norms.size(0) != prefixes || norms.size(1) < columns || (norms.stride(1) != 1 && norms.size(1) > 1)) {
    norms.fail("must be [" + std::to_string(prefixes) + ", at least " + std::to_string(columns) +
               "] with stride 1 in a row, got [" + std::to_string(norms.size(0)) + ", " +
               std::to_string(norms.size(1)) + "]");
  }
  return norms;
}

void set_query_norms(Vectors& queries, const CallTensors& tensors, const Capsule& capsule, int prefixes) {
  const Tensor norms = norms_of(tensors, "query_norms", capsule, prefixes, queries.rows);
  queries.inverse_norms = norms.data<float>();
  queries.norm_stride = norms.stride(0);
}

void set_candidate_norms(Vectors& candidates, const CallTensors& tensors, const Capsule& capsule, int prefixes) {
  const Tensor norms = norms_of(tensors, "candidate_norms", capsule, prefixes, padded_to_tiles(candidates.rows));
  candidates.inverse_norms = norms.require_aligned_rows().data<float>();
  candidates.norm_stride = norms.stride(0);
}

// [3, prefixes, rows, segments]; a call writes or reads `segments` of them from `first` on.
Partials partials_of(const CallTensors& tensors, const Capsule& capsule, int prefixes, int rows, int first,
                     int segments) {
  const Tensor tensor = tensors.tensor("partials", capsule, ScalarType::kFp32).require_rank(4);
  tensor.require_shape({3, prefixes, rows, tensor.size(3)}).require_contiguous();
  if (first < 0 || first + segments > tensor.size(3)) {
    tensor.fail("must have at least first_segment + " + std::to_string(segments) + " segments, got " +
                std::to_string(tensor.size(3)) + " and first_segment " + std::to_string(first));
  }
  Partials partials;
  const int64_t size = tensor.size(1) * tensor.size(2) * tensor.size(3);
  partials.reference = tensor.data<float>();
  partials.sum = partials.reference + size;
  partials.weighted = partials.sum + size;
  partials.stride = static_cast<int>(tensor.size(3));
  partials.first = first;
  return partials;
}

// Kernels add a row's index to it and compare the sum with columns.
int check_own_column(int own_column) {
  if (own_column < kNoOwn || own_column > -kNoOwn) {
    throw py::value_error("own_column must be within 2^30 of 0, got " + std::to_string(own_column));
  }
  return own_column;
}

int segments_of(int columns) { return static_cast<int>(padded_to_tiles(columns) / kSegment); }

void contrastive_norms(const Capsule& vectors_, const std::vector<int>& dims, const Capsule& out, uintptr_t stream) {
  const Tensor tensor("vectors", vectors_);
  const CallTensors tensors(tensor);
  const Prefixes prefixes = prefixes_of(dims);
  Vectors vectors = vectors_of(tensor, prefixes);
  vectors.norm_stride = padded_to_tiles(vectors.rows);
  float* norms = tensors.data("out", out, {prefixes.count, vectors.norm_stride});
  DeviceGuard device(tensors.device);
  launch_prefix_norms(vectors, prefixes, norms, element_of(tensor), device.target(stream));
}

void contrastive_scores(const Capsule& queries_, const Capsule& candidates_, const Capsule& query_ids,
                        const Capsule& candidate_ids, const Capsule& query_norms, const Capsule& candidate_norms,
                        const Capsule& temperature, const std::vector<int>& dims, int own_column, const Capsule& own,
                        const Capsule& logsumexp, const Capsule& weights, const Capsule& partials, int first_segment,
                        uintptr_t stream) {
  const Tensor queries("queries", queries_);
  const CallTensors tensors(queries);
  const Element element = element_of(queries);
  const Tensor candidates = tensors.tensor("candidates", candidates_, queries.type());
  ScoreParams p;
  p.prefixes = prefixes_of(dims);
  p.queries = vectors_of(queries, p.prefixes);
  p.candidates = vectors_of(candidates, p.prefixes);
  const int rows = p.queries.rows, columns = p.candidates.rows, count = p.prefixes.count;
  if (columns > 65535 * kTile) candidates.fail("must have at most 8388480 rows");
  set_query_norms(p.queries, tensors, query_norms, count);
  set_candidate_norms(p.candidates, tensors, candidate_norms, count);
  p.queries.ids = tensors.data_or_null<int64_t>("query_ids", query_ids, {rows}, ScalarType::kInt64);
  p.candidates.ids = tensors.data_or_null<int64_t>("candidate_ids", candidate_ids, {columns}, ScalarType::kInt64);
  p.temperature = tensors.data("temperature", temperature, {});
  p.own_column = check_own_column(own_column);
  p.own = tensors.data("own", own, {count, rows});
  p.logsumexp = tensors.data_or_null("logsumexp", logsumexp, {count, rows});
  p.weight_stride = padded_to_tiles(columns);
  p.weights = tensors.data_or_null<void>("weights", weights, {count, rows, p.weight_stride}, queries.type());
  p.partials = partials_of(tensors, partials, count, rows, first_segment, segments_of(columns));
  if (element == Element::kFp32 && p.weights == nullptr) {
    throw py::value_error("weights must hold the dot products of float32 features, got None");
  }
  DeviceGuard device(tensors.device);
  launch_scores(p, element, device.target(stream));
}

void contrastive_combine(const Capsule& partials, const Capsule& extra, bool known, const std::vector<int>& dims,
                         const Capsule& logsumexp_, const Capsule& mean, uintptr_t stream) {
  const Tensor logsumexp("logsumexp", logsumexp_);
  const CallTensors tensors(logsumexp);
  CombineParams p;
  p.prefixes = prefixes_of(dims);
  p.rows = size_of(logsumexp.require_rank(2), 1);
  p.logsumexp = tensors.data("logsumexp", logsumexp_, {p.prefixes.count, p.rows});
  p.mean = tensors.data("mean", mean, {p.prefixes.count, p.rows});
  p.partials = partials_of(tensors, partials, p.prefixes.count, p.rows, 0, 0);
  p.known = known;
  if (!extra.is_none()) {
    p.extra_columns = static_cast<int>(Tensor("extra", extra).require_rank(3).size(2));
    p.extra = tensors.data("extra", extra, {p.prefixes.count, p.rows, p.extra_columns});
  }
  DeviceGuard device(tensors.device);
  launch_combine(p, device.target(stream));
}

void contrastive_weights(const Capsule& weights_, int columns, const Capsule& query_norms,
                         const Capsule& candidate_norms, const Capsule& partials, int first_segment,
                         const Capsule& logsumexp, const Capsule& own, int own_column, const std::vector<int>& dims,
                         const std::vector<float>& factors, const Capsule& scale, const Capsule& column_sums,
                         uintptr_t stream) {
  const Tensor weights("weights", weights_);
  const CallTensors tensors(weights);
  const Element element = element_of(weights);
  WeightParams p;
  p.prefixes = prefixes_of(dims);
  const int count = p.prefixes.count, rows = size_of(weights.require_rank(3), 1);
  if (columns < 0) throw py::value_error("columns must not be negative, got " + std::to_string(columns));
  if (factors.size() != dims.size()) throw py::value_error("factors must be one per prefix");
  p.queries.rows = rows;
  p.candidates.rows = columns;
  set_query_norms(p.queries, tensors, query_norms, count);
  set_candidate_norms(p.candidates, tensors, candidate_norms, count);
  std::copy(factors.begin(), factors.end(), p.factors);
  p.own_column = check_own_column(own_column);
  p.own = tensors.data("own", own, {count, rows});
  p.logsumexp = tensors.data("logsumexp", logsumexp, {count, rows});
  p.partials = partials_of(tensors, partials, count, rows, first_segment, segments_of(columns));
  p.scale = tensors.data_or_null("scale", scale, {});
  p.weight_stride = padded_to_tiles(columns);
  p.weights = tensors.data<void>("weights", weights_, {count, rows, p.weight_stride}, weights.type());
  const int64_t groups = (rows + kGroupRows - 1) / kGroupRows;
  p.column_sums = tensors.data("column_sums", column_sums, {groups, count, p.weight_stride});
  DeviceGuard device(tensors.device);
  launch_gradient_weights(p, element, device.target(stream));
}

// The dtype of gradients: float32, or bfloat16 for bfloat16 features.
Element gradient_element(const Tensor& out, const Tensor& features) {
  if (out.type() != ScalarType::kBf16 || features.type() != ScalarType::kBf16) out.require_type(ScalarType::kFp32);
  return element_of(out);
}

// Chunks of 8 columns in a row of `out` [rows, columns]. Kernels write whole chunks.
int chunks_of(const Tensor& out, int64_t rows) {
  out.require_rank(2).require_aligned_rows();
  if (out.size(0) != rows || out.size(1) % 8 != 0 || out.size(1) > kMaxFeatures) {
    out.fail("must have a row for each vector and a multiple of 8 columns, at most 8192");
  }
  return static_cast<int>(out.size(1) / 8);
}

// float32 [rows, at least the last prefix].
Tensor product_of(const CallTensors& tensors, const Capsule& capsule, int64_t rows, const Prefixes& prefixes) {
  const Tensor product = tensors.tensor("product", capsule, ScalarType::kFp32).require_rank(2).require_aligned_rows();
  if (product.size(0) != rows || product.size(1) < prefixes.last()) {
    product.fail("must have a row for each vector and the columns of all prefixes");
  }
  return product;
}

void contrastive_finish(const Capsule& product_, const Capsule& vectors_, const Capsule& norm_part_,
                        const Capsule& scale, const Capsule& row_scale, const std::vector<int>& dims,
                        const Capsule& out_, uintptr_t stream) {
  const Tensor vectors("vectors", vectors_), out("out", out_);
  const CallTensors tensors(vectors);
  out.require_device(kDeviceType, tensors.device);
  FinishParams p;
  p.prefixes = prefixes_of(dims);
  p.vectors = vectors_of(vectors, p.prefixes);
  const int rows = p.vectors.rows;
  const Tensor product = product_of(tensors, product_, rows, p.prefixes);
  const Tensor norm_part = norms_of(tensors, "norm_part", norm_part_, p.prefixes.count, rows);
  p.product = product.data<float>();
  p.product_stride = product.stride(0);
  p.norm_part = norm_part.data<float>();
  p.norm_part_stride = norm_part.stride(0);
  p.scale = tensors.data("scale", scale, {});
  p.row_scale = tensors.data_or_null("row_scale", row_scale, {rows});
  p.out = out.data<void>();
  p.out_stride = out.stride(0);
  p.chunks = chunks_of(out, rows);
  const Element element = element_of(vectors), kept = gradient_element(out, vectors);
  DeviceGuard device(tensors.device);
  launch_finish_gradient(p, element, kept, device.target(stream));
}

// Queries [rows, D], negatives [rows * count, D].
PrivateParams private_params(const CallTensors& tensors, const Tensor& queries, const Capsule& negatives_, int count,
                             const std::vector<int>& dims) {
  const Tensor negatives = tensors.tensor("negatives", negatives_, queries.type());
  PrivateParams p;
  p.prefixes = prefixes_of(dims);
  p.queries = vectors_of(queries, p.prefixes);
  p.negatives = vectors_of(negatives, p.prefixes);
  p.count = count;
  if (count < 1 || p.negatives.rows != int64_t{p.queries.rows} * count) {
    negatives.fail("must have count rows for each query, got " + std::to_string(p.negatives.rows) + " rows, count " +
                   std::to_string(count) + " and " + std::to_string(p.queries.rows) + " queries");
  }
  return p;
}

void contrastive_private_scores(const Capsule& queries_, const Capsule& negatives, int count, const Capsule& query_ids,
                                const Capsule& negative_ids, const Capsule& query_norms, const Capsule& temperature,
                                const std::vector<int>& dims, const Capsule& scores, const Capsule& inverse_norms,
                                uintptr_t stream) {
  const Tensor queries("queries", queries_);
  const CallTensors tensors(queries);
  PrivateParams p = private_params(tensors, queries, negatives, count, dims);
  const int rows = p.queries.rows;
  const std::vector<int64_t> shape = {p.prefixes.count, rows, count};
  set_query_norms(p.queries, tensors, query_norms, p.prefixes.count);
  p.queries.ids = tensors.data_or_null<int64_t>("query_ids", query_ids, {rows}, ScalarType::kInt64);
  p.negatives.ids = tensors.data_or_null<int64_t>("negative_ids", negative_ids, {rows, count}, ScalarType::kInt64);
  p.temperature = tensors.data_or_null("temperature", temperature, {});
  p.scores = tensors.data("scores", scores, shape);
  p.inverse_norms = tensors.data_or_null("inverse_norms", inverse_norms, shape);
  DeviceGuard device(tensors.device);
  launch_private_scores(p, element_of(queries), device.target(stream));
}

void contrastive_private_gradients(const Capsule& queries_, const Capsule& negatives, int count, const Capsule& weights,
                                   const Capsule& norm_part, const Capsule& scale, const Capsule& row_scale,
                                   const std::vector<int>& dims, const Capsule& product_, const Capsule& out_,
                                   uintptr_t stream) {
  const Tensor queries("queries", queries_), out("out", out_);
  const CallTensors tensors(queries);
  out.require_device(kDeviceType, tensors.device);
  PrivateParams p = private_params(tensors, queries, negatives, count, dims);
  const std::vector<int64_t> shape = {p.prefixes.count, p.queries.rows, count};
  const Tensor product = product_of(tensors, product_, p.queries.rows, p.prefixes);
  p.weights = tensors.data("weights", weights, shape);
  p.norm_part = tensors.data("norm_part", norm_part, shape);
  p.scale = tensors.data("scale", scale, {});
  p.row_scale = tensors.data_or_null("row_scale", row_scale, {p.negatives.rows});
  p.product = product.data<float>();
  p.product_stride = product.stride(0);
  p.out = out.data<void>();
  p.out_stride = out.stride(0);
  p.chunks = chunks_of(out, p.negatives.rows);
  const Element element = element_of(queries), kept = gradient_element(out, queries);
  DeviceGuard device(tensors.device);
  launch_private_gradients(p, element, kept, device.target(stream));
}

}  // namespace

void bind_contrastive(py::module_& module) {
  using py::arg;
  module.attr("contrastive_tile") = kTile;
  module.attr("contrastive_segment") = kSegment;
  module.attr("contrastive_group_rows") = kGroupRows;
  module.attr("max_prefixes") = kMaxPrefixes;
  module.attr("max_features") = kMaxFeatures;
  module.attr("no_own_column") = kNoOwn;
  module.def("contrastive_norms", &contrastive_norms, arg("vectors"), arg("dims"), arg("out"), arg("stream"),
             "Writes 1 / norm of each prefix of each vector: [prefixes, rows padded to whole tiles].");
  module.def("contrastive_scores", &contrastive_scores, arg("queries"), arg("candidates"), arg("query_ids"),
             arg("candidate_ids"), arg("query_norms"), arg("candidate_norms"), arg("temperature"), arg("dims"),
             arg("own_column"), arg("own"), arg("logsumexp"), arg("weights"), arg("partials"), arg("first_segment"),
             arg("stream"),
             "Writes the partial sums of a block of candidates, the scores of the own positives and, if given, the "
             "weights. float32: on entry weights hold the dot products over the dims that each prefix adds.");
  module.def("contrastive_combine", &contrastive_combine, arg("partials"), arg("extra"), arg("known"), arg("dims"),
             arg("logsumexp"), arg("mean"), arg("stream"),
             "Writes logsumexp (if not known) and mean score [prefixes, rows] of all partial sums.");
  module.def("contrastive_weights", &contrastive_weights, arg("weights"), arg("columns"), arg("query_norms"),
             arg("candidate_norms"), arg("partials"), arg("first_segment"), arg("logsumexp"), arg("own"),
             arg("own_column"), arg("dims"), arg("factors"), arg("scale"), arg("column_sums"), arg("stream"),
             "Turns weights in place into the operands of the gradient GEMMs; writes column_sums.");
  module.def("contrastive_finish", &contrastive_finish, arg("product"), arg("vectors"), arg("norm_part"), arg("scale"),
             arg("row_scale"), arg("dims"), arg("out"), arg("stream"),
             "out = (product scale - vectors norm_part) row_scale; out may be the memory of product.");
  module.def("contrastive_private_scores", &contrastive_private_scores, arg("queries"), arg("negatives"), arg("count"),
             arg("query_ids"), arg("negative_ids"), arg("query_norms"), arg("temperature"), arg("dims"), arg("scores"),
             arg("inverse_norms"), arg("stream"),
             "Writes scores (cosines without a temperature) and inverse norms of each query's own negatives.");
  module.def("contrastive_private_gradients", &contrastive_private_gradients, arg("queries"), arg("negatives"),
             arg("count"), arg("weights"), arg("norm_part"), arg("scale"), arg("row_scale"), arg("dims"),
             arg("product"), arg("out"), arg("stream"),
             "Writes the gradients of each query's own negatives; adds their part to the queries' product.");
}

}  // namespace conan_fast

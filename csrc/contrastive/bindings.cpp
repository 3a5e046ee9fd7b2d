#include "contrastive/bindings.h"

#include <pybind11/stl.h>

#include <algorithm>

#include "contrastive/launch.h"
#include "tensor.h"

namespace py = pybind11;

namespace conan_fast {
namespace {

using Capsule = py::object;

// Checks the tensors of one call: all on one device, shapes given by the first.
struct Call {
  int device;

  // The tensor of a capsule, as far as all are alike; nothing for None.
  std::optional<Tensor> tensor(const char* name, const Capsule& capsule, ScalarType type) const {
    if (capsule.is_none()) return std::nullopt;
    Tensor result(name, capsule);
    result.require_device(kDeviceType, device).require_type(type);
    return result;
  }
  // A contiguous one; null for None.
  template <class T = float>
  T* data(const char* name, const Capsule& capsule, const std::vector<int64_t>& shape,
          ScalarType type = ScalarType::kFp32) const {
    auto result = tensor(name, capsule, type);
    if (!result) return nullptr;
    return result->require_shape(shape).require_contiguous().data<T>();
  }
};

Element element_of(const Tensor& tensor) {
  switch (tensor.type()) {
    case ScalarType::kBf16: return Element::kBf16;
    case ScalarType::kFp16: return Element::kFp16;
    default: tensor.require_type(ScalarType::kFp32); return Element::kFp32;
  }
}

int rows_of(const Tensor& tensor) {
  if (tensor.size(0) >= -kNoOwn) throw py::value_error("tensors must have fewer than 2^30 rows");
  return static_cast<int>(tensor.size(0));
}

// [rows, at least the last prefix]
Vectors vectors_of(const Tensor& tensor, const Prefixes& prefixes) {
  tensor.require_rank(2).require_aligned_rows();
  if (tensor.size(1) < prefixes.dims[prefixes.count - 1]) throw py::value_error("a prefix is longer than the vectors");
  Vectors vectors;
  vectors.data = tensor.data<void>();
  vectors.stride = tensor.size(0) == 1 ? 0 : tensor.stride(0);  // of one row it means nothing
  vectors.rows = rows_of(tensor);
  return vectors;
}

Prefixes prefixes_of(const std::vector<int>& dims) {
  Prefixes prefixes;
  prefixes.count = static_cast<int>(dims.size());
  if (dims.empty() || dims.size() > kMaxPrefixes) throw py::value_error("dims must be 1 to 32");
  for (size_t m = 0; m < dims.size(); ++m) {
    if (dims[m] % 16 != 0 || dims[m] <= (m == 0 ? 0 : dims[m - 1]) || dims[m] > kMaxFeatures) {
      throw py::value_error("dims must be rising multiples of 16, at most 8192, got " + std::to_string(dims[m]));
    }
    prefixes.dims[m] = dims[m];
  }
  return prefixes;
}

// Inverse norms [prefixes, >= rows] of vectors, rows of which may be a part of a wider tensor.
void set_norms(Vectors& vectors, const char* name, const Capsule& capsule, const Call& call, int prefixes,
               bool padded) {
  auto norms = call.tensor(name, capsule, ScalarType::kFp32);
  if (!norms) throw py::type_error(std::string(name) + " must be a tensor");
  norms->require_rank(2);
  const int64_t wanted = padded ? (vectors.rows + kTile - 1) / kTile * kTile : vectors.rows;
  const bool strides = norms->stride(1) == 1 || norms->size(1) == 1;
  if (norms->size(0) != prefixes || norms->size(1) < wanted || !strides) {
    throw py::value_error(std::string(name) + " must be [" + std::to_string(prefixes) + ", at least " +
                          std::to_string(wanted) + "]");
  }
  vectors.inverse_norms = norms->data<float>();
  vectors.norm_stride = norms->stride(0);
  if (padded) norms->require_aligned_rows();
}

Partials partials_of(const Capsule& capsule, const Call& call, int prefixes, int rows, int first, int segments) {
  auto tensor = call.tensor("partials", capsule, ScalarType::kFp32);
  if (!tensor) throw py::type_error("partials must be a tensor");
  tensor->require_rank(4).require_shape({3, prefixes, rows, tensor->size(3)}).require_contiguous();
  if (first < 0 || first + segments > tensor->size(3)) throw py::value_error("partials have too few segments");
  Partials partials;
  const int64_t size = tensor->size(1) * tensor->size(2) * tensor->size(3);
  partials.reference = tensor->data<float>();
  partials.sum = partials.reference + size;
  partials.weighted = partials.sum + size;
  partials.stride = static_cast<int>(tensor->size(3));
  partials.first = first;
  return partials;
}

// Of row 0; kernels add rows to it, and compare columns with the sum.
int check_own_column(int own_column) {
  if (own_column < kNoOwn || own_column > -kNoOwn) {
    throw py::value_error("own_column within 2^30 is taken, got " + std::to_string(own_column));
  }
  return own_column;
}

int segments_of(int columns) { return (columns + kTile - 1) / kTile * (kTile / kSegment); }

// [prefixes, rows, columns padded to whole tiles], contiguous.
void* weights_of(const Capsule& capsule, const Call& call, ScalarType type, int prefixes, int rows, int columns) {
  return call.data<void>("weights", capsule, {prefixes, rows, int64_t{segments_of(columns)} * kSegment}, type);
}

void contrastive_norms(const Capsule& vectors_, const std::vector<int>& dims, const Capsule& out, uintptr_t stream) {
  Tensor tensor("vectors", vectors_);
  const Call call{tensor.device_id()};
  tensor.require_device(kDeviceType, call.device);
  const Element element = element_of(tensor);
  const Prefixes prefixes = prefixes_of(dims);
  Vectors vectors = vectors_of(tensor, prefixes);
  const int64_t padded = (vectors.rows + kTile - 1) / kTile * kTile;
  vectors.norm_stride = padded;
  float* norms = call.data("out", out, {prefixes.count, padded});
  DeviceGuard device(call.device);
  launch_prefix_norms(vectors, prefixes, norms, element, reinterpret_cast<Stream>(stream));
}

void contrastive_scores(const Capsule& queries_, const Capsule& candidates_, const Capsule& query_ids,
                        const Capsule& candidate_ids, const Capsule& query_norms, const Capsule& candidate_norms,
                        const Capsule& temperature, const std::vector<int>& dims, int own_column, const Capsule& own,
                        const Capsule& logsumexp, const Capsule& weights, const Capsule& partials, int first_segment,
                        uintptr_t stream) {
  Tensor queries("queries", queries_), candidates("candidates", candidates_);
  const Call call{queries.device_id()};
  queries.require_device(kDeviceType, call.device);
  const Element element = element_of(queries);
  candidates.require_device(kDeviceType, call.device).require_type(queries.type());
  ScoreParams p;
  p.prefixes = prefixes_of(dims);
  p.queries = vectors_of(queries, p.prefixes);
  p.candidates = vectors_of(candidates, p.prefixes);
  const int rows = p.queries.rows, columns = p.candidates.rows, count = p.prefixes.count;
  set_norms(p.queries, "query_norms", query_norms, call, count, false);
  set_norms(p.candidates, "candidate_norms", candidate_norms, call, count, true);
  p.queries.ids = call.data<int64_t>("query_ids", query_ids, {rows}, ScalarType::kInt64);
  p.candidates.ids = call.data<int64_t>("candidate_ids", candidate_ids, {columns}, ScalarType::kInt64);
  p.temperature = call.data("temperature", temperature, {});
  p.own_column = check_own_column(own_column);
  p.own = call.data("own", own, {count, rows});
  p.logsumexp = call.data("logsumexp", logsumexp, {count, rows});
  p.weights = weights_of(weights, call, queries.type(), count, rows, columns);
  p.weight_stride = int64_t{segments_of(columns)} * kSegment;
  p.partials = partials_of(partials, call, count, rows, first_segment, segments_of(columns));
  if (columns > 65535 * kTile) throw py::value_error("candidates must be at most 8388480 in one call");
  if (p.temperature == nullptr || p.own == nullptr) throw py::value_error("temperature and own must be tensors");
  DeviceGuard device(call.device);
  if (element == Element::kFp32) {
    if (p.weights == nullptr) throw py::value_error("weights must hold the products of float32 features");
    launch_product_scores(p, reinterpret_cast<Stream>(stream));
  } else {
    launch_sm80_scores(p, element, reinterpret_cast<Stream>(stream));
  }
}

void contrastive_combine(const Capsule& partials, const Capsule& extra, bool known, const std::vector<int>& dims,
                         const Capsule& logsumexp_, const Capsule& mean, uintptr_t stream) {
  Tensor logsumexp("logsumexp", logsumexp_);
  const Call call{logsumexp.device_id()};
  logsumexp.require_rank(2);
  CombineParams p;
  p.prefixes = prefixes_of(dims);
  p.rows = static_cast<int>(std::min<int64_t>(logsumexp.size(1), -kNoOwn));
  p.logsumexp = call.data("logsumexp", logsumexp_, {p.prefixes.count, p.rows});
  p.mean = call.data("mean", mean, {p.prefixes.count, p.rows});
  p.partials = partials_of(partials, call, p.prefixes.count, p.rows, 0, 0);
  p.known = known;
  if (auto tensor = call.tensor("extra", extra, ScalarType::kFp32)) {
    p.extra_columns = static_cast<int>(tensor->require_rank(3).size(2));
    p.extra = call.data("extra", extra, {p.prefixes.count, p.rows, p.extra_columns});
  }
  if (p.mean == nullptr) throw py::value_error("mean must be a tensor");
  DeviceGuard device(call.device);
  launch_combine(p, reinterpret_cast<Stream>(stream));
}

void contrastive_weights(const Capsule& weights_, int columns, const Capsule& query_norms,
                         const Capsule& candidate_norms, const Capsule& partials, int first_segment,
                         const Capsule& logsumexp, const Capsule& own, int own_column, const std::vector<int>& dims,
                         const std::vector<float>& factors, const Capsule& scale, const Capsule& column_sums,
                         uintptr_t stream) {
  Tensor weights("weights", weights_);
  const Call call{weights.device_id()};
  weights.require_device(kDeviceType, call.device).require_rank(3);
  const Element element = element_of(weights);
  WeightParams p;
  p.prefixes = prefixes_of(dims);
  const int count = p.prefixes.count, rows = static_cast<int>(std::min<int64_t>(weights.size(1), -kNoOwn));
  if (columns < 0 || factors.size() != dims.size()) throw py::value_error("factors must be one per prefix");
  p.queries.rows = rows;
  p.candidates.rows = columns;
  set_norms(p.queries, "query_norms", query_norms, call, count, false);
  set_norms(p.candidates, "candidate_norms", candidate_norms, call, count, true);
  std::copy(factors.begin(), factors.end(), p.factors);
  p.own_column = check_own_column(own_column);
  p.own = call.data("own", own, {count, rows});
  p.logsumexp = call.data("logsumexp", logsumexp, {count, rows});
  p.partials = partials_of(partials, call, count, rows, first_segment, segments_of(columns));
  p.scale = call.data("scale", scale, {});
  p.weights = weights_of(weights_, call, weights.type(), count, rows, columns);
  p.weight_stride = int64_t{segments_of(columns)} * kSegment;
  p.column_sums = call.data("column_sums", column_sums, {(rows + kGroupRows - 1) / kGroupRows, count, p.weight_stride});
  if (p.own == nullptr || p.logsumexp == nullptr || p.column_sums == nullptr) {
    throw py::value_error("own, logsumexp and column_sums must be tensors");
  }
  DeviceGuard device(call.device);
  launch_gradient_weights(p, element, reinterpret_cast<Stream>(stream));
}

// Of gradients: float32, or bfloat16 for bfloat16 features.
Element gradient_element(const Tensor& out, const Tensor& features) {
  if (out.type() == ScalarType::kBf16)
    features.require_type(ScalarType::kBf16);
  else
    out.require_type(ScalarType::kFp32);
  return element_of(out);
}

// Chunks of 8 columns in a row of `out` [rows, columns], which is written in whole chunks.
int chunks_of(const Tensor& out, int64_t rows) {
  out.require_rank(2).require_aligned_rows();
  if (out.size(0) != rows || out.size(1) % 8 != 0 || out.size(1) > kMaxFeatures) {
    throw py::value_error("out must have a row for each vector and a multiple of 8 columns, at most 8192");
  }
  return static_cast<int>(out.size(1) / 8);
}

// A float32 product [rows, at least the last prefix].
const Tensor& check_product(const Tensor& product, const Call& call, int64_t rows, const Prefixes& prefixes) {
  product.require_device(kDeviceType, call.device).require_type(ScalarType::kFp32).require_rank(2);
  product.require_aligned_rows();
  if (product.size(0) != rows || product.size(1) < prefixes.dims[prefixes.count - 1]) {
    throw py::value_error("product must have a row for each vector and all prefixes");
  }
  return product;
}

void contrastive_finish(const Capsule& product_, const Capsule& vectors_, const Capsule& norm_part,
                        const Capsule& scale, const Capsule& row_scale, const std::vector<int>& dims,
                        const Capsule& out_, uintptr_t stream) {
  Tensor product("product", product_), vectors("vectors", vectors_), out("out", out_);
  const Call call{vectors.device_id()};
  vectors.require_device(kDeviceType, call.device);
  out.require_device(kDeviceType, call.device);
  FinishParams p;
  p.prefixes = prefixes_of(dims);
  p.vectors = vectors_of(vectors, p.prefixes);
  const int rows = p.vectors.rows;
  p.product = check_product(product, call, rows, p.prefixes).data<float>();
  p.product_stride = product.stride(0);
  auto part = call.tensor("norm_part", norm_part, ScalarType::kFp32);
  if (!part || part->rank() != 2 || part->size(0) != p.prefixes.count || part->size(1) < rows ||
      (part->stride(1) != 1 && part->size(1) > 1)) {
    throw py::value_error("norm_part must be [prefixes, at least the rows]");
  }
  p.norm_part = part->data<float>();
  p.norm_part_stride = part->stride(0);
  p.scale = call.data("scale", scale, {});
  p.row_scale = call.data("row_scale", row_scale, {rows});
  p.out = out.data<void>();
  p.out_stride = out.stride(0);
  p.chunks = chunks_of(out, rows);
  if (p.scale == nullptr) throw py::value_error("scale must be a tensor");
  const Element element = element_of(vectors), kept = gradient_element(out, vectors);
  DeviceGuard device(call.device);
  launch_finish_gradient(p, element, kept, reinterpret_cast<Stream>(stream));
}

// What both private functions are told: queries [rows, D], negatives [rows * count, D].
PrivateParams private_params(const Tensor& queries, const Tensor& negatives, const Call& call, int count,
                             const std::vector<int>& dims) {
  queries.require_device(kDeviceType, call.device);
  negatives.require_device(kDeviceType, call.device).require_type(queries.type());
  PrivateParams p;
  p.prefixes = prefixes_of(dims);
  p.queries = vectors_of(queries, p.prefixes);
  p.negatives = vectors_of(negatives, p.prefixes);
  p.count = count;
  if (count < 1 || p.negatives.rows != int64_t{p.queries.rows} * count) {
    throw py::value_error("negatives must be as many rows for each query");
  }
  return p;
}

void contrastive_private_scores(const Capsule& queries_, const Capsule& negatives_, int count, const Capsule& query_ids,
                                const Capsule& negative_ids, const Capsule& query_norms, const Capsule& temperature,
                                const std::vector<int>& dims, const Capsule& scores, const Capsule& inverse_norms,
                                uintptr_t stream) {
  Tensor queries("queries", queries_), negatives("negatives", negatives_);
  const Call call{queries.device_id()};
  PrivateParams p = private_params(queries, negatives, call, count, dims);
  const std::vector<int64_t> shape = {p.prefixes.count, p.queries.rows, count};
  set_norms(p.queries, "query_norms", query_norms, call, p.prefixes.count, false);
  p.queries.ids = call.data<int64_t>("query_ids", query_ids, {p.queries.rows}, ScalarType::kInt64);
  p.negatives.ids = call.data<int64_t>("negative_ids", negative_ids, {p.queries.rows, count}, ScalarType::kInt64);
  p.temperature = call.data("temperature", temperature, {});
  p.scores = call.data("scores", scores, shape);
  p.inverse_norms = call.data("inverse_norms", inverse_norms, shape);
  if (p.scores == nullptr) throw py::value_error("scores must be a tensor");
  DeviceGuard device(call.device);
  launch_private_scores(p, element_of(queries), reinterpret_cast<Stream>(stream));
}

void contrastive_private_gradients(const Capsule& queries_, const Capsule& negatives_, int count,
                                   const Capsule& weights, const Capsule& norm_part, const Capsule& scale,
                                   const Capsule& row_scale, const std::vector<int>& dims, const Capsule& product_,
                                   const Capsule& out_, uintptr_t stream) {
  Tensor queries("queries", queries_), negatives("negatives", negatives_), product("product", product_);
  Tensor out("out", out_);
  const Call call{queries.device_id()};
  PrivateParams p = private_params(queries, negatives, call, count, dims);
  const std::vector<int64_t> shape = {p.prefixes.count, p.queries.rows, count};
  out.require_device(kDeviceType, call.device);
  p.weights = call.data("weights", weights, shape);
  p.norm_part = call.data("norm_part", norm_part, shape);
  p.scale = call.data("scale", scale, {});
  p.row_scale = call.data("row_scale", row_scale, {p.negatives.rows});
  p.product = check_product(product, call, p.queries.rows, p.prefixes).data<float>();
  p.product_stride = product.stride(0);
  p.out = out.data<void>();
  p.out_stride = out.stride(0);
  p.chunks = chunks_of(out, p.negatives.rows);
  if (p.weights == nullptr || p.norm_part == nullptr || p.scale == nullptr) {
    throw py::value_error("weights, norm_part and scale must be tensors");
  }
  const Element element = element_of(queries), kept = gradient_element(out, queries);
  DeviceGuard device(call.device);
  launch_private_gradients(p, element, kept, reinterpret_cast<Stream>(stream));
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
             "Writes the partial sums of a block of candidates, the own positives' scores and, if given, weights. "
             "float32: weights come in with the products of the parts of the dimensions.");
  module.def("contrastive_combine", &contrastive_combine, arg("partials"), arg("extra"), arg("known"), arg("dims"),
             arg("logsumexp"), arg("mean"), arg("stream"),
             "Writes logsumexp (if not known) and mean score [prefixes, rows] of all partial sums.");
  module.def("contrastive_weights", &contrastive_weights, arg("weights"), arg("columns"), arg("query_norms"),
             arg("candidate_norms"), arg("partials"), arg("first_segment"), arg("logsumexp"), arg("own"),
             arg("own_column"), arg("dims"), arg("factors"), arg("scale"), arg("column_sums"), arg("stream"),
             "Turns weights in place into the operands of the gradient's products; writes column_sums.");
  module.def("contrastive_finish", &contrastive_finish, arg("product"), arg("vectors"), arg("norm_part"), arg("scale"),
             arg("row_scale"), arg("dims"), arg("out"), arg("stream"),
             "out = (product scale - vectors norm_part) row_scale; out may be the memory of product.");
  module.def("contrastive_private_scores", &contrastive_private_scores, arg("queries"), arg("negatives"), arg("count"),
             arg("query_ids"), arg("negative_ids"), arg("query_norms"), arg("temperature"), arg("dims"), arg("scores"),
             arg("inverse_norms"), arg("stream"),
             "Writes scores, without temperature cosines, and inverse norms of each query's own negatives.");
  module.def("contrastive_private_gradients", &contrastive_private_gradients, arg("queries"), arg("negatives"),
             arg("count"), arg("weights"), arg("norm_part"), arg("scale"), arg("row_scale"), arg("dims"),
             arg("product"), arg("out"), arg("stream"),
             "Writes the gradients of each query's own negatives; adds their part to the queries' product.");
}

}  // namespace conan_fast

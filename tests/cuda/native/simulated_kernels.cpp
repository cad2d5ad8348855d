// Kernels for the dispatch key CUDA in a CPU build: each one runs the CPU's kernel on the same memory.
//
// Tensors of the simulated device keep their numbers in CPU memory. A boxed fallback replaces every operand by an
// alias that claims the CPU, calls the operator again, and turns the results back. Two rules of a real GPU are kept:
// operands on different devices are refused, and so are convolutions whose operands differ in type (cuDNN).
#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <unistd.h>

#include <atomic>
#include <unordered_map>

using at::DataPtr;
using at::Device;
using at::DispatchKey;
using at::DispatchKeySet;
using at::Tensor;
using at::TensorImpl;
using c10::IValue;
using c10::Storage;
using c10::StorageImpl;

static const Device kSimulated(at::kCUDA, 0);
static std::atomic<long> synchronisations{0};
static std::atomic<long> wait_microseconds{0};

// The CPU waits for the device, which may be given work that takes some time.
static void synchronise() {
  synchronisations++;
  if (wait_microseconds) usleep(wait_microseconds);
}

// A storage on another device over the same bytes, which it keeps alive.
static Storage mirror(const Storage& storage, Device device) {
  auto* kept = new Storage(storage);
  DataPtr pointer((void*)storage.data(), kept, [](void* context) { delete static_cast<Storage*>(context); }, device);
  return Storage(Storage::use_byte_size_t(), storage.nbytes(), std::move(pointer), nullptr, false);
}

static Tensor alias(const Tensor& tensor, const Storage& storage, Device device) {
  auto key = device.is_cuda() ? DispatchKey::CUDA : DispatchKey::CPU;
  auto result = at::detail::make_tensor<TensorImpl>(Storage(storage), DispatchKeySet(key), tensor.dtype());
  auto* impl = result.unsafeGetTensorImpl();
  impl->set_storage_offset(tensor.storage_offset());
  impl->set_sizes_and_strides(tensor.sizes(), tensor.strides());
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  if (tensor.is_conj()) result._set_conj(true);
  if (tensor.is_neg()) result._set_neg(true);
  return result;
}

// The operands of one call, and which alias belongs to which of them.
struct Call {
  std::unordered_map<StorageImpl*, Storage> on_cpu;
  std::unordered_map<StorageImpl*, Storage> on_cuda;
  std::unordered_map<TensorImpl*, Tensor> original;
  std::vector<Tensor> aliases;
  bool has_cuda = false, has_cpu = false;

  Tensor lower(const Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (!tensor.is_cuda()) {
      if (tensor.dim() > 0) has_cpu = true;  // scalars may stay on the CPU
      return tensor;
    }
    has_cuda = true;
    auto* key = tensor.storage().unsafeGetStorageImpl();
    auto entry = on_cpu.find(key);
    if (entry == on_cpu.end()) {
      auto twin = mirror(tensor.storage(), at::kCPU);
      entry = on_cpu.emplace(key, twin).first;
      on_cuda.emplace(twin.unsafeGetStorageImpl(), tensor.storage());
    }
    auto result = alias(tensor, entry->second, at::kCPU);
    original.emplace(result.unsafeGetTensorImpl(), tensor);
    aliases.push_back(result);
    return result;
  }

  Tensor raise(const Tensor& tensor, bool to_cuda) {
    if (!tensor.defined()) return tensor;
    auto operand = original.find(tensor.unsafeGetTensorImpl());
    if (operand != original.end()) return update(operand->second, tensor);  // in place, or out=
    if (tensor.is_cuda()) return tensor;
    auto view = on_cuda.find(tensor.storage().unsafeGetStorageImpl());
    if (view != on_cuda.end()) return alias(tensor, view->second, kSimulated);
    return to_cuda ? alias(tensor, mirror(tensor.storage(), kSimulated), kSimulated) : tensor;
  }

  static Tensor update(const Tensor& operand, const Tensor& result) {
    auto* impl = operand.unsafeGetTensorImpl();
    if (result.storage().nbytes() != operand.storage().nbytes() || result.data_ptr() != operand.data_ptr())
      impl->set_storage_keep_dtype(mirror(result.storage(), kSimulated));
    if (operand.sizes() != result.sizes() || operand.strides() != result.strides() ||
        operand.storage_offset() != result.storage_offset()) {
      impl->set_storage_offset(result.storage_offset());
      impl->set_sizes_and_strides(result.sizes(), result.strides());
    }
    return operand;
  }
};

static IValue lower(const IValue& value, Call& call, bool& to_cuda) {
  if (value.isTensor()) return call.lower(value.toTensor());
  if (value.isTensorList()) {
    std::vector<Tensor> tensors;
    for (const Tensor& tensor : value.toTensorVector()) tensors.push_back(call.lower(tensor));
    return c10::List<Tensor>(tensors);
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> tensors;
    for (auto tensor : value.toOptionalTensorVector())
      tensors.push_back(tensor.has_value() ? std::optional<Tensor>(call.lower(*tensor)) : std::nullopt);
    return tensors;
  }
  if (value.isDevice() && value.toDevice().is_cuda()) {
    to_cuda = true;
    return Device(at::kCPU);
  }
  return value;
}

static IValue raise(const IValue& value, Call& call, bool to_cuda) {
  if (value.isTensor()) return call.raise(value.toTensor(), to_cuda);
  if (value.isTensorList()) {
    std::vector<Tensor> tensors;
    for (const Tensor& tensor : value.toTensorVector()) tensors.push_back(call.raise(tensor, to_cuda));
    return c10::List<Tensor>(tensors);
  }
  return value;
}

// Operators that may take tensors of both devices.
static bool crosses_devices(const std::string& name) {
  return name == "aten::copy_" || name == "aten::_copy_from" || name == "aten::_to_copy" || name == "aten::set_" ||
         name.rfind("aten::index", 0) == 0 || name.rfind("aten::_index", 0) == 0;
}

static bool is_convolution(const std::string& name) {
  return name == "aten::convolution_backward" || name.find("slow_conv2d") != std::string::npos;
}

static void require_one_type(const std::string& name, const std::vector<IValue>& arguments) {
  std::optional<at::ScalarType> type;
  for (const auto& value : arguments) {
    if (!value.isTensor() || !value.toTensor().defined()) continue;
    auto own = value.toTensor().scalar_type();
    TORCH_CHECK(!type || *type == own, "cuDNN: expected the same type for all operands of ", name, ", got ", *type,
                " and ", own);
    type = own;
  }
}

// A copy from the CPU waits for the device, unless it is asked not to: `_to_copy` and `copy_` have `non_blocking`.
static bool copies_and_waits(const c10::FunctionSchema& schema, const std::vector<IValue>& arguments, bool has_cpu,
                             bool has_cuda) {
  if (!has_cpu || !has_cuda || (schema.name() != "aten::_to_copy" && schema.name() != "aten::copy_")) return false;
  for (size_t i = 0; i < arguments.size(); i++)
    if (schema.arguments()[i].name() == "non_blocking") return !arguments[i].toBool();
  return false;
}

static void run_on_cpu(const c10::OperatorHandle& op, DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto& name = schema.name();
  auto count = schema.arguments().size();
  auto base = stack->size() - count;
  Call call;
  bool to_cuda = false, names_device = false;
  for (size_t i = 0; i < count; i++) {
    names_device |= (*stack)[base + i].isDevice();
    (*stack)[base + i] = lower((*stack)[base + i], call, to_cuda);
  }
  TORCH_CHECK(!(call.has_cuda && call.has_cpu) || crosses_devices(name),
              "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (", name,
              ")");
  if (is_convolution(name)) require_one_type(name, {stack->begin() + base, stack->end()});
  bool leaves_device = call.has_cuda && names_device && !to_cuda;
  if (name == "aten::_local_scalar_dense" || name == "aten::nonzero" || leaves_device) synchronise();
  if (copies_and_waits(schema, {stack->begin() + base, stack->end()}, call.has_cpu, call.has_cuda || to_cuda))
    synchronise();
  {
    c10::impl::ExcludeDispatchKeyGuard guard(c10::autograd_dispatch_keyset_with_ADInplaceOrView |
                                             c10::autocast_dispatch_keyset);
    op.callBoxed(stack);
  }
  auto results = schema.returns().size();
  for (size_t i = 0; i < results; i++) {
    auto& value = (*stack)[stack->size() - results + i];
    value = raise(value, call, to_cuda || (call.has_cuda && !names_device));
  }
}

TORCH_LIBRARY_IMPL(_, CUDA, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>()); }

static std::vector<c10::RegistrationHandleRAII> registrations;

// Operators with a kernel for every backend would bypass the fallback: they get it as their own kernel.
extern "C" int simulate_cuda() {
  auto& dispatcher = c10::Dispatcher::singleton();
  for (auto& name : dispatcher.getAllOpNames()) {
    if (name.name.rfind("aten::", 0) != 0) continue;
    auto op = dispatcher.findOp(name);
    if (!op || !op->hasSchema()) continue;
    if (op->hasKernelForDispatchKey(DispatchKey::CompositeExplicitAutograd) ||
        op->hasKernelForDispatchKey(DispatchKey::CompositeExplicitAutogradNonFunctional))
      registrations.push_back(dispatcher.registerImpl(name, DispatchKey::CUDA,
                                                      c10::KernelFunction::makeFromBoxedFunction<&run_on_cpu>(),
                                                      std::nullopt, nullptr, "simulated"));
  }
  return (int)registrations.size();
}

extern "C" void cuda_wait(long microseconds) { wait_microseconds = microseconds; }

extern "C" long cuda_synchronisations() { return synchronisations.load(); }

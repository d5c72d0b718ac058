// Attention on the CPU with a state in and out; the contract is in kernels/attention.py.
//
// The method is FlashAttention's (arXiv 2205.14135, 2307.08691): keys in blocks, a running sum per
// row. The reference of the exponents rises only when a score exceeds it by 2^20, as rescaling by
// less changes nothing in floating point.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if (defined(__x86_64__) || defined(__aarch64__)) && defined(__GNUC__) && !defined(__clang__)
#define NATIVE 1
#if defined(__x86_64__) && defined(__linux__) && __GNUC__ >= 11  // older ones do not know AMX
#define WITH_AMX 1
#endif
#include <pthread.h>
#endif

namespace {

constexpr long KEYS = 64;       // keys of a block
constexpr long MOST_DIM = 256;  // of a head
constexpr float LEAST_STEP = 6e-8f;  // the least that float16 has
constexpr size_t KEPT = size_t(64) << 20;  // bytes that a thread keeps between calls, at most

enum Type : int64_t { FLOAT32, BFLOAT16, INT8 };

struct Run {
    int64_t row, position, tokens;
};

// Tells the core that a thread is waiting in a loop.
inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Sizes in elements. Mirrored, as all that follow, by kernels/native/abi.py.
struct Attention {
    int64_t type, kv_type;
    int64_t queries, heads, kv_heads, dim;
    const void* q;
    int64_t q_row, q_head;
    const int32_t* positions;  // of the queries
    const void* k;
    int64_t k_row, k_head;
    const void* v;
    int64_t v_row, v_head;
    const float* k_scale;  // of int8: [kv_heads, rows]
    const float* v_scale;
    int64_t scale_head;
    const Run* runs;
    int64_t run_count;
    float scale;
    int64_t window;  // 0: none
    float* out;      // [queries, heads, dim]
    float* lse;      // [queries, heads]
    int64_t fresh;   // whether the state is only written
    int64_t threads;
};

// How much queries attend to blocks of KEYS keys of each run; `v`, `out` and `lse` are not used.
struct Scoring {
    Attention of;
    float* weight;  // [kv_heads, queries * group, blocks]
    float* peak;    // [kv_heads, queries * group]
};

// Queries of a batch, one per row, to keys and values in slots of a pool. The keys come in parts.
// A part has one or several rows; several rows see all of its keys. A row's last part is its own.
// Parts come in levels: each level has the next part of every row.
struct Decoding {
    int64_t type, kv_type;
    int64_t heads, kv_heads, dim;
    const void* q;
    int64_t q_row, q_head;
    const int64_t* positions;  // of the queries
    const void* k;
    const void* v;
    int64_t kv_slot, kv_head;
    const float* k_scale;  // of int8: [kv_heads, slots]
    const float* v_scale;
    int64_t scale_head;
    int64_t level_count;
    const int64_t* levels;       // [level_count + 1], into parts
    const int64_t* rows;
    const int64_t* row_offsets;  // [parts + 1], into rows
    const Run* runs;
    const int64_t* run_offsets;  // [parts + 1], into runs
    float scale;
    int64_t window;  // of parts of one row
    float* out;      // [rows, heads, dim]
    float* lse;      // [rows, heads]
    float* sum;      // [rows, heads], scratch; null if there is one level
    int64_t threads;
};

// Blocks of KEYS tokens in 8 or 4 bits. Packing reads blocks[i] = (KV head, block) of k and v;
// unpacking writes k and v [count, KEYS, dim].
struct Quantised {
    int64_t type, bits;
    int64_t tokens, dim, count;
    const int64_t* blocks;
    void* k;
    int64_t k_row, k_head;
    void* v;
    int64_t v_row, v_head;
    uint8_t* packed_k;   // [count, KEYS, dim, or half of it]
    uint16_t* k_scale;   // [count, 2, dim]
    uint8_t* packed_v;
    uint16_t* v_scale;   // [count, 2, KEYS]
    int64_t threads;
};

// How symbols are coded; a symbol is a value's upper bits, the `shift` lower ones are sent as they
// are. The symbol `escape` (256: there is none) stands for every value that has no other.
struct CodeTable {
    uint32_t slots[4096];  // of a state's lower bits: frequency - 1, offset << 12, symbol << 24
    uint32_t ranges[256];  // of a symbol: frequency - 1, first slot << 12
    int32_t least;         // the value of symbol 0
    uint32_t escape;
    int32_t shift, unused;
};

// Encodes to the end of `data`, and sets `size` to the bytes used; or decodes all of `data`, and
// sets `size` to -1 if it is no such stream.
struct Coded {
    int64_t channels, count, width;  // symbols of a channel; bytes of a symbol
    void* symbols;                   // [channels, count] uint8 or int16
    const uint8_t* which;            // [channels], of the tables
    const CodeTable* tables;
    uint8_t* data;
    int64_t size;
};

// How often each of `span` values occurs in a channel; less is the first, more is the last.
struct Counted {
    int64_t channels, count, width;
    const void* symbols;  // [channels, count]
    int64_t least, span;
    int32_t* counts;      // [channels, span]
};

// Numbers in bfloat16, as their exponents, and the rest: the mantissa with the sign below it.
struct Halves {
    int64_t count;
    uint16_t* numbers;
    uint8_t* exponents;
    uint8_t* rest;
};

// A linear layer: weight [outputs, inputs], bias or null, in the model's dtype; or the weight in
// blocks.
struct Product {
    const void* weight;
    const void* bias;
    int64_t outputs;
    int64_t form;  // of the blocks, 0: the model's dtype
};

// The numbers of a weight in blocks, in the model's dtype.
struct Restored {
    int64_t type, form, blocks, inputs, threads;
    const void* weight;  // [blocks of outputs, blocks of inputs, bytes]
    void* out;           // [inputs, outputs of all blocks]
};

// From a layer's attention to the queries, keys and values of the next, or to the final norm.
struct Layer {
    int64_t type, rows, hidden, inner, heads, kv_heads, dim;
    float eps;
    int64_t threads;
    const void* attended;  // [rows, heads * dim]; null before the first layer
    float* x;              // [rows, hidden], the residual
    Product o, gate_up[2], down;
    const void* mlp_norm;
    const void* next_norm;
    Product qkv[3];
    const void* q_norm;    // of a head, or null
    const void* k_norm;
    const void* cosines;   // [rows, dim]
    const void* sines;     // [rows, dim], negative in the first half
    void* q;               // [rows, heads, dim]; null after the last layer
    void* k;
    void* v;
    void* normed;          // [rows, hidden], after the last layer
};

// Takes a state in: rows are all heads of all tokens.
struct Merged {
    int64_t type, rows, dim, threads;  // type of `more`
    float* out;
    float* lse;
    const void* more;
    const float* more_lse;
};

// All with rows of `size` numbers; `*_row` are strides.
struct Gated {
    int64_t type, rows, size, threads;
    const void* gate;
    int64_t gate_row;
    const void* up;
    int64_t up_row;
    void* out;
};

struct Normed {
    int64_t type, rows, size, threads;
    int64_t x_type;  // `type`, or FLOAT32
    void* x;
    int64_t x_row;
    const void* plus;  // or null
    const void* weight;
    float eps;
    void* out;
};

struct Rotated {
    int64_t type, rows, heads, dim, threads;
    const void* x;  // [rows, heads, dim]
    int64_t x_row;
    const void* cosines;  // [rows, dim]
    const void* sines;    // [rows, dim], negative in the first half
    void* out;
};

struct FewRows {
    int64_t type, rows, size, threads;
    const void* x;  // [rows, size]
    Product product;
    float* out;     // [rows, outputs]
};

// A block of at most KEYS consecutive keys.
struct Staged {
    int64_t row, position, tokens;
};

// The keys and values of a call, as the products want them.
struct Stage {
    std::vector<Staged> keys;
    long blocks;
    char* k;
    char* v;

    Stage(const Attention& call, size_t block_bytes);
    Stage(const Stage&) = delete;
    ~Stage();
};

inline float as_float(float x) { return x; }
inline float as_float(uint16_t x) {
    const uint32_t bits = uint32_t(x) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}

inline void put(float* at, float x) { *at = x; }
inline void put(uint16_t* at, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    *at = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Floats or halves that grow. No templates of the library's in the parts that are compiled for one
// instruction set: their code would be shared with the others.
template <class Number>
struct Numbers {
    Number* data = nullptr;
    long room = 0;

    ~Numbers();
    void reserve(long count);
    Number& operator[](long i) { return data[i]; }
};
template <class Number>
Numbers<Number>::~Numbers() {
    std::free(data);
}
template <class Number>
void Numbers<Number>::reserve(long count) {
    if (count <= room) return;
    std::free(data);
    room = 0;
    const long rounded = (count + 63) / 64 * 64;
    data = (Number*)std::aligned_alloc(64, rounded * sizeof(Number));
    if (!data) throw std::bad_alloc();
    room = rounded;
}
template struct Numbers<float>;
template struct Numbers<uint16_t>;
template struct Numbers<uint32_t>;

// Memory that a thread keeps from call to call.
struct Scratch {
    std::unique_ptr<char[]> memory;
    size_t size = 0;
};
Scratch& scratch_of_thread() {
    static thread_local Scratch mine;
    return mine;
}
char* scratch(size_t nbytes) {
    Scratch& mine = scratch_of_thread();
    if (nbytes + 64 > mine.size) {
        mine = {};  // freed before more is allocated
        mine.memory.reset(new char[nbytes + 64]);
        mine.size = nbytes + 64;
    }
    return (char*)(((uintptr_t)mine.memory.get() + 63) / 64 * 64);
}

Stage::Stage(const Attention& call, size_t block_bytes) {
    for (int64_t i = 0; i < call.run_count; i++)
        for (int64_t at = 0; at < call.runs[i].tokens; at += KEYS)
            keys.push_back({call.runs[i].row + at, call.runs[i].position + at,
                            std::min<int64_t>(KEYS, call.runs[i].tokens - at)});
    blocks = long(keys.size());
    k = scratch(2 * blocks * block_bytes);
    v = k + blocks * block_bytes;
}
Stage::~Stage() {
    if (scratch_of_thread().size > KEPT) scratch_of_thread() = {};
}

// Keeps threads off the CPU that the caller runs on. Otherwise the kernel may wake one there, where
// it waits for the end of the caller's time slice, although another CPU is idle.
class Elsewhere {
  public:
    void send(std::vector<std::thread>& threads) {
#ifdef __linux__
        const int cpu = sched_getcpu();
        if (cpu < 0 || (cpu == cpu_ && threads.size() == sent_)) return;
        cpu_ = cpu, sent_ = threads.size();
        cpu_set_t others;
        if (sched_getaffinity(0, sizeof others, &others)) return;
        CPU_CLR(cpu, &others);
        if (!CPU_COUNT(&others)) return;
        for (std::thread& each : threads)
            pthread_setaffinity_np(each.native_handle(), sizeof others, &others);
#else
        (void)threads;
#endif
    }

  private:
    int cpu_ = -1;
    size_t sent_ = 0;
};

// Threads that wait for work, first spinning and then asleep. One call at a time uses them; other
// calls meanwhile run on their own thread. If the system starts fewer threads than requested, these
// do all the work.
class Pool {
  public:
    void run(long threads, long count, const std::function<void(long)>& work) {
        std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
        if (threads < 2 || count < 2 || !mine.owns_lock()) {
            for (long i = 0; i < count; i++) work(i);
            return;
        }
        {
            std::lock_guard<std::mutex> lock(mutex_);
            hire(threads - 1);
            work_ = &work;
            count_ = count;
            next_ = 0;
            failed_ = false;
            invited_ = std::min(threads - 1, long(workers_.size()));
            left_ = invited_;
            elsewhere_.send(workers_);
            round_++;
        }
        wake_.notify_all();
        drain();
        if (!awake([this] { return left_ == 0; })) {
            std::unique_lock<std::mutex> lock(mutex_);
            done_.wait(lock, [this] { return left_ == 0; });
        }
        if (failed_) throw std::bad_alloc();
    }

  private:
    void hire(long workers) {
        try {
            while (long(workers_.size()) < workers)
                workers_.emplace_back([this, index = long(workers_.size()), seen = round_.load()] {
                    serve(index, seen);
                });
        } catch (const std::system_error&) {
        }
    }
    void drain() {
        try {
            for (long i = next_++; i < count_; i = next_++) (*work_)(i);
        } catch (const std::bad_alloc&) {
            failed_ = true;
        }
    }
    // Waits for a moment: a step of decoding has work for the threads every few microseconds.
    template <class Ready>
    static bool awake(Ready ready) {
        const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(50);
        do {
            for (int i = 0; i < 32; i++) {
                if (ready()) return true;
                pause();
            }
        } while (std::chrono::steady_clock::now() < until);
        return ready();
    }
    void serve(long index, uint64_t seen) {
        for (;;) {
            if (!awake([&] { return round_ != seen; })) {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return round_ != seen; });
            }
            {
                std::lock_guard<std::mutex> lock(mutex_);
                seen = round_;
                if (index >= invited_) continue;
            }
            drain();
            if (--left_ == 0) {
                std::lock_guard<std::mutex> lock(mutex_);
                done_.notify_one();
            }
        }
    }

    std::mutex busy_, mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> workers_;
    const std::function<void(long)>* work_ = nullptr;
    std::atomic<long> next_{0}, left_{0};
    std::atomic<uint64_t> round_{0};
    std::atomic<bool> failed_{false};
    Elsewhere elsewhere_;
    long count_ = 0, invited_ = 0;
};

// Never destroyed: its threads wait until the process ends.
Pool* pool = new Pool;

// A child of a fork has none of the threads, and may have a lock that nobody opens.
void begin_anew() { pool = new Pool; }

void in_parallel(long threads, long count, const std::function<void(long)>& work) {
#ifdef NATIVE
    static const int heeded = pthread_atfork(nullptr, nullptr, begin_anew);
    (void)heeded;
#endif
    pool->run(threads, count, work);
}

// Runs a kernel: returns 0, or 1 if there was not enough memory. No exception leaves the library.
template <class Work>
int guarded(const Work& work) {
    try {
        work();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

namespace plain {
#include "rans.inc"

template <class Symbol>
void count(const Counted& call) {
    constexpr long COPIES = 4;  // equal neighbours would wait for each other's increment
    std::vector<int32_t> counts(COPIES * call.span);
    for (long c = 0; c < call.channels; c++) {
        const Symbol* from = (const Symbol*)call.symbols + c * call.count;
        std::fill(counts.begin(), counts.end(), 0);
        for (long i = 0; i < call.count; i++) {
            const long place = std::min<long>(std::max<long>(from[i] - call.least, 0), call.span - 1);
            counts[i % COPIES * call.span + place]++;
        }
        for (long i = 0; i < call.span; i++) {
            int32_t& sum = call.counts[c * call.span + i] = 0;
            for (long copy = 0; copy < COPIES; copy++) sum += counts[copy * call.span + i];
        }
    }
}

void split(const Halves& call) {
    const uint16_t* __restrict numbers = call.numbers;
    uint8_t* __restrict exponents = call.exponents;
    uint8_t* __restrict rest = call.rest;
    for (long i = 0; i < call.count; i++) {
        exponents[i] = uint8_t(numbers[i] >> 7);
        rest[i] = uint8_t(numbers[i] << 1 | numbers[i] >> 15);
    }
}
void join(const Halves& call) {
    uint16_t* __restrict numbers = call.numbers;
    const uint8_t* __restrict exponents = call.exponents;
    const uint8_t* __restrict rest = call.rest;
    for (long i = 0; i < call.count; i++)
        numbers[i] = uint16_t(exponents[i] << 7 | rest[i] >> 1 | rest[i] << 15);
}
}  // namespace plain

}  // namespace

#if NATIVE && defined(__aarch64__)
namespace {
namespace neon {
constexpr int LANES = 8;
constexpr bool PAIRS = false, TILES = false;
#include "neon.inc"
#include "tile.inc"
#include "decode.inc"
#include "quantize.inc"
#include "rows.inc"
#include "layer.inc"
}  // namespace neon
}  // namespace
#endif

#if NATIVE && defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")
namespace {
namespace avx512_bf16 {
constexpr int LANES = 16;
constexpr bool PAIRS = true, TILES = false;
#include "avx512.inc"
#include "pairs.inc"
// Of a key, 32 dimensions or the 16 that are left.
static inline Operand along(const uint16_t* at, long left) {
    if (left < 32) return (Operand)_mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i*)at));
    return (Operand)_mm512_loadu_si512(at);
}
static inline Operand along(const int8_t* at, long left) {
    return _mm512_cvtne2ps_pbh(left < 32 ? zero() : read(at + 16), read(at));
}
// Of two values, 16 dimensions.
static inline Operand across(const uint16_t* one, const uint16_t* two) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)one));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)two));
    return (Operand)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}
static inline Operand across(const int8_t* one, const int8_t* two) {
    const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(read(one)), 16);
    return (Operand)_mm512_or_si512(low, _mm512_castps_si512(read(two)));
}
// Weights [count, slots] of two keys each; reads and writes whole vectors.
static inline const uint32_t* factors_of(const float* weights, long count, int slots,
                                         uint32_t* to) {
    alignas(32) uint16_t order[16];
    for (int i = 0; i < 16; i++) {
        const int within = i % (2 * slots);
        order[i] = uint16_t(i - within + within % 2 * slots + within / 2);
    }
    const __m256i places = _mm256_load_si256((const __m256i*)order);
    for (long i = 0; i < count * slots; i += LANES) {
        const __m256i narrow = (__m256i)_mm512_cvtneps_pbh(load(weights + i));
        _mm256_storeu_si256((__m256i*)(to + i / 2), _mm256_permutexvar_epi16(places, narrow));
    }
    return to;
}
#include "tile.inc"
#include "decode.inc"
#define PAIRED 1
#include "layer.inc"
#undef PAIRED
}  // namespace avx512_bf16
}  // namespace
#pragma GCC pop_options

#if WITH_AMX
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,amx-tile,amx-bf16")
namespace {
namespace amx_bf16 {
constexpr int LANES = 16;
constexpr bool PAIRS = true, TILES = true;
#include "avx512.inc"
#include "pairs.inc"
#define AMX 1
#define PAIRED 1
#include "tile.inc"
#include "layer.inc"
#undef PAIRED
#undef AMX
}  // namespace amx_bf16
}  // namespace
#pragma GCC pop_options
#endif

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")
namespace {
namespace avx512 {
constexpr int LANES = 16;
constexpr bool PAIRS = false, TILES = false;
#include "avx512.inc"
using Operand = Vec;
static inline Operand operand(const float* at) { return load(at); }
static inline Operand spread(const float* at) { return spread_float(*at); }
static inline Vec multiply(Vec sum, Operand a, Operand b) { return _mm512_fmadd_ps(a, b, sum); }
static inline void put_weights(float* at, long row, Vec one, Vec two) {
    store(at, one);
    store(at + row, two);
}
template <class Kv>
static inline Operand along(const Kv* at, long) { return read(at); }
template <class Kv>
static inline Operand across(const Kv* one, const Kv*) { return read(one); }
static inline const float* factors_of(const float* weights, long, int, float*) { return weights; }
#include "tile.inc"
#include "decode.inc"
#include "quantize.inc"
#define VECTORS 1
#include "rans.inc"
#undef VECTORS
#include "rows.inc"
#include "layer.inc"
}  // namespace avx512
}  // namespace
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace {
namespace avx2 {
constexpr int LANES = 8;
constexpr bool PAIRS = false, TILES = false;
#include "avx2.inc"
#include "tile.inc"
#include "decode.inc"
#include "quantize.inc"
#include "rows.inc"
#include "layer.inc"
}  // namespace avx2
}  // namespace
#pragma GCC pop_options
#endif

#if WITH_AMX
namespace {
// Whether the CPU has AMX with bfloat16, and the system lets this process use it.
bool may_use_amx() {
    unsigned a, b, c, d;
    const unsigned needed = 1u << 22 | 1u << 24;  // AMX-BF16, AMX-TILE
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & needed) != needed) return false;
    const long tile_data = 18, request = 0x1023;  // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, request, tile_data) == 0;
}
}  // namespace
#endif

extern "C" {

// 0: no attention on this CPU. x86-64: 1: AVX2; 2: AVX-512; 3: AVX-512 with bfloat16; 4: AMX too.
// ARM: 1: NEON.
int sps2_level() {
#if NATIVE && defined(__aarch64__)
    return 1;
#elif NATIVE
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw")) {
#if WITH_AMX
        if (may_use_amx()) return 4;
#endif
        return 3;
    }
    if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")) return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

// The version, then the sizes of all structures in the order of kernels/native/abi.py. The version
// is incremented with a change that alters no size.
int sps2_abi(int64_t* sizes, int room) {
    const int64_t all[] = {
        2, sizeof(Run), sizeof(Attention), sizeof(Scoring), sizeof(Decoding), sizeof(Quantised),
        sizeof(Merged), sizeof(Product), sizeof(Layer), sizeof(FewRows), sizeof(Restored),
        sizeof(Gated), sizeof(Normed), sizeof(Rotated), sizeof(CodeTable), sizeof(Coded),
        sizeof(Counted), sizeof(Halves),
    };
    const int count = sizeof(all) / sizeof(*all);
    for (int i = 0; i < count && i < room; i++) sizes[i] = all[i];
    return count;
}

#ifdef NATIVE
#define BODY(...) return guarded([&] { __VA_ARGS__; });
#else
#define BODY(...) return (void)call, (void)level, 0;
#endif
#define TYPED(space, name) \
    (call->type == BFLOAT16 ? space::name<uint16_t>(*call) : space::name<float>(*call))
#if defined(__aarch64__)
#define BY_LEVEL(name) (void)level, neon::name(*call)
#define BY_TYPE(name) (void)level, TYPED(neon, name)
#define BY_PAIRS(type, paired, other) other
#else
#define BY_LEVEL(name) level >= 2 ? avx512::name(*call) : avx2::name(*call)
#define BY_TYPE(name) level >= 2 ? TYPED(avx512, name) : TYPED(avx2, name)
#define BY_PAIRS(type, paired, other) \
    (level >= 3 && (type) == BFLOAT16) ? avx512_bf16::paired(*call) : other
#endif
#if WITH_AMX
#define BY_TILES(type, name) \
    if (level >= 4 && (type) == BFLOAT16) { \
        BODY(amx_bf16::name(*call)) \
    }
#else
#define BY_TILES(type, name)
#endif

// `level` as above, at most what the CPU has. They return 0, or 1 if there was not enough memory.
int sps2_attend(const Attention* call, int level) {
    BY_TILES(call->type, attend)
    BODY(BY_PAIRS(call->type, attend, BY_LEVEL(attend)))
}
int sps2_score(const Scoring* call, int level) {
    BY_TILES(call->of.type, score)
    BODY(BY_PAIRS(call->of.type, score, BY_LEVEL(score)))
}
int sps2_decode(const Decoding* call, int level) {
    BODY(BY_PAIRS(call->type, decode, BY_LEVEL(decode)))
}
int sps2_layer(const Layer* call, int level) {
    BY_TILES(call->type, run_layer<uint16_t>)
    BODY(BY_PAIRS(call->type, run_layer<uint16_t>, BY_TYPE(run_layer)))
}
int sps2_product(const FewRows* call, int level) {
    BY_TILES(call->type, run_product<uint16_t>)
    BODY(BY_PAIRS(call->type, run_product<uint16_t>, BY_TYPE(run_product)))
}
int sps2_pack(const Quantised* call, int level) { BODY(BY_LEVEL(pack)) }
int sps2_unpack(const Quantised* call, int level) { BODY(BY_LEVEL(unpack)) }
int sps2_add_norm(const Normed* call, int level) { BODY(BY_LEVEL(add_norm)) }
int sps2_restore(const Restored* call, int level) { BODY(BY_TYPE(restore)) }
int sps2_swiglu(const Gated* call, int level) { BODY(BY_TYPE(swiglu)) }
int sps2_rotate(const Rotated* call, int level) { BODY(BY_TYPE(rotate)) }
int sps2_merge(const Merged* call, int level) { BODY(BY_TYPE(merge)) }

// Of every CPU, also one that has none of the kernels above.
int sps2_rans_encode(Coded* call, int level) {
#if NATIVE && defined(__x86_64__)
    if (level >= 2)
        return call->width == 1 ? avx512::encode<uint8_t>(*call) : avx512::encode<int16_t>(*call), 0;
#endif
    (void)level;
    return call->width == 1 ? plain::encode<uint8_t>(*call) : plain::encode<int16_t>(*call), 0;
}
int sps2_rans_decode(Coded* call, int level) {
    bool whole;
#if NATIVE && defined(__x86_64__)
    if (level >= 2)
        whole = call->width == 1 ? avx512::decode<uint8_t>(*call) : avx512::decode<int16_t>(*call);
    else
#endif
        whole = call->width == 1 ? plain::decode<uint8_t>(*call) : plain::decode<int16_t>(*call);
    (void)level;
    if (!whole) call->size = -1;
    return 0;
}
int sps2_rans_count(const Counted* call, int) {
    return guarded([&] {
        call->width == 1 ? plain::count<uint8_t>(*call) : plain::count<int16_t>(*call);
    });
}
int sps2_split(const Halves* call, int) { return plain::split(*call), 0; }
int sps2_join(const Halves* call, int) { return plain::join(*call), 0; }
}

// Logits of given tokens through llama.cpp's public API, for comparing its answers with ours before its speed is quoted.
//   llama_logits MODEL.gguf TOKENS(int32 file) OUT(float32 file) FIRST_ROW FLASH(0|1) THREADS
// Writes the logits of rows FIRST_ROW.. of one sequence, row by row. With FLASH 0 llama.cpp runs every layer dense.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "llama.h"

static bool fail(const char* what) {
  std::fprintf(stderr, "llama_logits: %s\n", what);
  return false;
}

static bool run(char** argv) {
  std::FILE* in = std::fopen(argv[2], "rb");
  if (!in) return fail("cannot open the token file");
  std::vector<llama_token> tokens;
  for (llama_token t; std::fread(&t, sizeof t, 1, in) == 1;) tokens.push_back(t);
  std::fclose(in);
  const int first_row = std::atoi(argv[4]), threads = std::atoi(argv[6]);

  llama_model_params model_params = llama_model_default_params();
  llama_model* model = llama_model_load_from_file(argv[1], model_params);
  if (!model) return fail("cannot load the model");
  const int batch_size = 512;
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<uint32_t>((tokens.size() + 255) / 256 * 256);
  params.n_batch = params.n_ubatch = batch_size;
  params.n_threads = params.n_threads_batch = threads;
  params.flash_attn_type = std::atoi(argv[5]) ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  llama_context* context = llama_init_from_model(model, params);
  if (!context) return fail("cannot create a context");

  const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
  std::FILE* out = std::fopen(argv[3], "wb");
  if (!out) return fail("cannot open the output file");
  llama_batch batch = llama_batch_init(batch_size, 0, 1);
  const int total = static_cast<int>(tokens.size());
  for (int start = 0; start < total; start += batch_size) {
    batch.n_tokens = total - start < batch_size ? total - start : batch_size;
    for (int i = 0; i < batch.n_tokens; i++) {
      batch.token[i] = tokens[start + i];
      batch.pos[i] = start + i;
      batch.n_seq_id[i] = 1;
      batch.seq_id[i][0] = 0;
      batch.logits[i] = start + i >= first_row;
    }
    if (llama_decode(context, batch)) return fail("llama_decode failed");
    for (int i = 0; i < batch.n_tokens; i++)
      if (batch.logits[i]) std::fwrite(llama_get_logits_ith(context, i), sizeof(float), static_cast<size_t>(vocab), out);
  }
  std::fclose(out);
  llama_batch_free(batch);
  llama_free(context);
  llama_model_free(model);
  return true;
}

int main(int argc, char** argv) {
  if (argc != 7) return fail("usage: llama_logits MODEL TOKENS OUT FIRST_ROW FLASH THREADS") ? 0 : 2;
  llama_backend_init();
  const bool good = run(argv);
  llama_backend_free();
  return good ? 0 : 1;
}

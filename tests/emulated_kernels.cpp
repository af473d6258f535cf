// Calls the kernels of a library for another process: see emulated_kernels.py, which writes requests and reads answers.
//
// A request is a function's name, its buffers (the first is its argument struct) and where pointers lie in them and what
// they point at. The answer is the function's status and what it left in the other buffers without pointers.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

static void read_all(void* to, size_t bytes) {
  if (fread(to, 1, bytes, stdin) != bytes) exit(feof(stdin) ? 0 : 1);
}
static int64_t read_number() {
  int64_t n;
  read_all(&n, sizeof n);
  return n;
}
static void write_number(int64_t n) { fwrite(&n, sizeof n, 1, stdout); }

struct Buffer {
  char* data;
  int64_t size;
  bool answered;
};

int main(int, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW);
  if (!library) {
    fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  for (;;) {
    std::string name(size_t(read_number()), 0);
    read_all(name.data(), name.size());
    std::vector<Buffer> buffers;
    for (int64_t n = read_number(); n > 0; n--) {
      const int64_t size = read_number();
      Buffer b{(char*)aligned_alloc(64, (size_t(size) + 127) / 64 * 64), size, !buffers.empty()};
      read_all(b.data, size_t(size));
      buffers.push_back(b);
    }
    for (int64_t n = read_number(); n > 0; n--) {
      Buffer& holder = buffers[size_t(read_number())];
      const int64_t at = read_number();
      const char* target = buffers[size_t(read_number())].data + read_number();
      memcpy(holder.data + at, &target, sizeof target);
      holder.answered = false;
    }
    void* function = dlsym(library, name.c_str());
    if (!function) {
      fprintf(stderr, "%s\n", dlerror());
      return 1;
    }
    char* args = buffers.empty() ? nullptr : buffers[0].data;
    if (name == "ls_usable_isa" || name == "ls_isa") {  // one takes a number, the other nothing
      const char* text =
          name == "ls_isa" ? ((const char* (*)())function)() : ((const char* (*)(int))function)(*(int*)args);
      write_number(text ? int64_t(strlen(text)) : -1);
      if (text) fwrite(text, 1, strlen(text), stdout);
    } else {
      write_number(((int (*)(void*))function)(args));
      for (const Buffer& b : buffers)
        if (b.answered) fwrite(b.data, 1, size_t(b.size), stdout);
    }
    fflush(stdout);
    for (const Buffer& b : buffers) free(b.data);
  }
}

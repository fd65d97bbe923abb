# Does cuda/NOTES.md have the bytes of workspace that the benchmark prints?
execute_process(COMMAND ${BENCH} --workspace OUTPUT_VARIABLE printed
                COMMAND_ERROR_IS_FATAL ANY)
file(READ ${NOTES} notes)
string(FIND "${notes}" "${printed}" at)
if(at LESS 0)
  message(FATAL_ERROR "cuda/NOTES.md has another table than\n${printed}")
endif()

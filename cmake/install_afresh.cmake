# Installs the build tree `build` under `prefix`, after emptying it.
file(REMOVE_RECURSE ${prefix})
execute_process(COMMAND ${CMAKE_COMMAND} --install ${build} --prefix ${prefix}
                COMMAND_ERROR_IS_FATAL ANY)

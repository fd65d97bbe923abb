# What does Doxygen need besides the sources?  Its own header and layout with
# this site's parts put in, the theme, and what MathJax needs to render TeX as
# SVG: from `theme`, `mathjax` and `from` to the folder `to`.
execute_process(
  COMMAND ${doxygen} -w html header.html footer.html unused.css
  WORKING_DIRECTORY ${to} OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${doxygen} -l default_layout.xml
  WORKING_DIRECTORY ${to} OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)

function(put_in file before what)
  file(READ ${to}/${file} text)
  string(FIND "${text}" "${before}" at)
  if(at LESS 0)
    message(FATAL_ERROR "${file} of this Doxygen has no \"${before}\"")
  endif()
  string(REPLACE "${before}" "${what}${before}" text "${text}")
  file(WRITE ${to}/${file} "${text}")
endfunction()

file(READ ${from}/site/head.html head)
put_in(header.html "</head>" "${head}")
# The language, for readers and for those who listen.
file(READ ${to}/header.html text)
string(REPLACE "<html xmlns=" "<html lang=\"en\" xmlns=" text "${text}")
file(WRITE ${to}/header.html "${text}")

file(READ ${to}/default_layout.xml layout)
file(READ ${from}/site/navigation.xml navigation)
string(FIND "${layout}" "<navindex>" start)
string(FIND "${layout}" "</navindex>" end)
if(start LESS 0 OR end LESS 0)
  message(FATAL_ERROR "this Doxygen's layout has no <navindex>")
endif()
string(LENGTH "</navindex>" length)
math(EXPR end "${end} + ${length}")
string(SUBSTRING "${layout}" 0 ${start} head)
string(SUBSTRING "${layout}" ${end} -1 tail)
file(WRITE ${to}/layout.xml "${head}${navigation}${tail}")

foreach(name doxygen-awesome.css doxygen-awesome-sidebar-only.css
             doxygen-awesome-sidebar-only-darkmode-toggle.css
             doxygen-awesome-darkmode-toggle.js)
  file(COPY ${theme}/${name} DESTINATION ${to}/theme)
endforeach()
foreach(path MathJax.js config/TeX-AMS-MML_SVG.js extensions jax/element
             jax/input/TeX jax/output/SVG)
  get_filename_component(folder ${path} DIRECTORY)
  file(COPY ${mathjax}/${path} DESTINATION ${to}/html/mathjax/${folder}
       FOLLOW_SYMLINK_CHAIN)
endforeach()

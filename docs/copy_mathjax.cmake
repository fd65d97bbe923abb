# Copies what MathJax 2 needs to render TeX as SVG: `from` -> `to`.
foreach(path MathJax.js config/TeX-AMS-MML_SVG.js extensions jax/element
             jax/input/TeX jax/output/SVG)
  get_filename_component(folder ${path} DIRECTORY)
  file(COPY ${from}/${path} DESTINATION ${to}/${folder} FOLLOW_SYMLINK_CHAIN)
endforeach()

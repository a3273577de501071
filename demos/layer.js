// Of the slider of decoder layers: the page keeps which one, and of how many, as "3/4" in `props.value`.
const slider = () => element.querySelector('input');
function show() {
    const at = Number(slider().value), depth = Number(slider().max);
    const said = at ? `${at} of ${depth}` : 'vision tower';
    element.querySelector('output').textContent = said;
    slider().setAttribute('aria-valuetext', said);
    slider().style.setProperty('--at', at / depth);
}
function set() {
    const [at, depth] = props.value.split("/");
    slider().max = depth;
    slider().value = at;
    show();
}
element.addEventListener('input', show);
element.addEventListener('change', () => { props.value = `${slider().value}/${slider().max}`; trigger('input'); });
watch('value', set);
set();

// Of the slider and the methods: the page keeps both in `props.value`, which goes with every question.
// The markup is the server's; `element` is its place on the page, `trigger` tells the server.
const one = what => element.querySelector(what);
const boxes = () => [...element.querySelectorAll('.method input')];
const fits = box => box.closest('.method').dataset.for.split(' ').includes(props.kind);

function percent() {
    return JSON.parse(one('#keep').dataset.steps)[Number(one('#keep').value)];
}

function show() {
    const slider = one('#keep'), now = percent();
    one('output').textContent = `${now} % of the visual tokens`;
    slider.setAttribute('aria-valuetext', `${now} %`);
    slider.style.setProperty('--at', Number(slider.value) / Number(slider.max));
    for (const tick of element.querySelectorAll('.ticks span'))
        tick.classList.toggle('now', tick.dataset.step === slider.value);
    const chosen = boxes().filter(box => box.checked && fits(box));
    one('.chosen').textContent = chosen.map(box => box.value).join(', ') || 'none chosen';
    for (const box of boxes()) box.closest('.method').hidden = !fits(box);
    for (const group of element.querySelectorAll('.group')) {
        const own = boxes().filter(box => group.contains(box) && fits(box));
        group.hidden = own.length === 0;
        group.querySelector('.count').textContent = own.filter(box => box.checked).length || '';
    }
}

function tell() {
    show();
    props.value = JSON.stringify({keep: percent(), methods: boxes().filter(box => box.checked).map(box => box.value)});
    trigger('input');
}

element.addEventListener('input', event => { if (event.target.id === 'keep') show(); });
element.addEventListener('change', tell);
element.addEventListener('click', event => {
    const tick = event.target.closest('.ticks span');
    if (!tick) return;
    one('#keep').value = tick.dataset.step;
    tell();
});
watch('kind', show);
if (matchMedia('(max-width: 860px)').matches) one('.methods-box').open = false;
show();

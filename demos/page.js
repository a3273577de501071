// What the page does by itself: it goes to the answer, turns cards over, plays clips, copies, saves, and says so when
// the server is gone. Events are caught on the document, since cards come and go.
const find = what => document.querySelector(what);
const calm = matchMedia('(prefers-reduced-motion: reduce)');

function say(text) {  // to screen readers and, for a moment, on the page
    const toast = find('#vtc-said');
    toast.textContent = text;
    toast.classList.add('shown');
    clearTimeout(say.timer);
    say.timer = setTimeout(() => toast.classList.remove('shown'), 2500);
}

window.vtc = {
    go() {
        const results = find('#results'), top = results.getBoundingClientRect().top;
        if (top < 0 || top > innerHeight * 0.6)
            results.scrollIntoView({behavior: calm.matches ? 'auto' : 'smooth', block: 'start'});
    },
    next() { find('#question textarea')?.focus(); },
};

// Cards: a picture, and the original in its place
function flip(button) {
    const original = find('article[data-method=full] .film img');
    const pressed = button.getAttribute('aria-pressed') !== 'true' && original !== null;
    button.setAttribute('aria-pressed', String(pressed));
    button.querySelector('.over')?.remove();
    if (!pressed) return;
    const over = original.cloneNode();
    over.className = 'over';
    over.alt = '';
    button.querySelector('.film').append(over);
}

async function copy(text) {
    try {
        await navigator.clipboard.writeText(text);
    } catch {  // pages that are not served by https or from this machine have no clipboard
        const area = document.body.appendChild(document.createElement('textarea'));
        area.value = text;
        area.select();
        const done = document.execCommand('copy');
        area.remove();
        if (!done) return say('This browser does not let the page copy.');
    }
    say('Copied.');
}

function save(button) {
    const picture = [...button.closest('article').querySelectorAll('.film img')].at(-1);
    const link = document.createElement('a');
    link.href = picture.src;
    link.download = button.dataset.name;
    link.click();
    say(`Saved as ${button.dataset.name}.`);
}

document.addEventListener('click', event => {
    const button = event.target.closest('button');
    if (button?.matches('.flip')) flip(button);
    else if (button?.matches('.copy')) copy(button.dataset.code);
    else if (button?.matches('.save')) save(button);
    else if (button?.matches('.play')) { film.plays = !film.plays; draw(); }
});

// Clips: all cards show one time step, and the next one half a second later
const film = {step: 0, plays: !calm.matches};

function draw() {
    const films = [...document.querySelectorAll('.film[data-steps]')], bar = find('.film-bar');
    if (!films.length || !bar) return;
    const count = JSON.parse(films[0].dataset.steps).length;
    film.step %= count;
    find('#results').style.setProperty('--step', film.step);
    for (const one of films)
        one.closest('figure').querySelector('.when').textContent = JSON.parse(one.dataset.steps)[film.step] ?? '';
    const slider = bar.querySelector('input'), play = bar.querySelector('.play');
    slider.max = count - 1;
    slider.value = film.step;
    slider.style.setProperty('--at', film.step / Math.max(1, count - 1));
    bar.querySelector('output').textContent = `${film.step + 1} of ${count}`;
    if (play.textContent !== (film.plays ? 'Pause' : 'Play')) play.textContent = film.plays ? 'Pause' : 'Play';
}

document.addEventListener('input', event => {
    if (!event.target.matches('.film-bar input')) return;
    Object.assign(film, {step: Number(event.target.value), plays: false});
    draw();
});
let tick = 0;
setInterval(() => {
    if (film.plays && !document.hidden && ++tick % 5 === 0) film.step += 1;
    draw();
    find('.drop button[aria-label]')?.removeAttribute('aria-label');  // it says "Upload", which its text does, too
}, 100);

// Files that the server would refuse are not sent
function weigh(event, files) {
    const large = [...files ?? []].find(file => file.size > Number(find('.top').dataset.most));
    if (!large) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (event.type === 'change') event.target.value = '';
    trigger('select', {name: large.name, bytes: large.size});
}
document.addEventListener('change', event => {
    if (event.target.matches('.drop input[type=file]')) weigh(event, event.target.files);
}, true);
document.addEventListener('drop', event => {
    if (event.target.closest('.drop')) weigh(event, event.dataTransfer?.files);
}, true);

// The server: while it cannot be reached, or refuses a question, the page says so and shows no answers, which could be
// to another question; those that were on their way stay away until something is asked again
let refused = false;

function away(text, cards) {
    const place = find('#vtc-lost');
    place.textContent = text;
    place.hidden = false;
    for (const card of document.querySelectorAll(cards)) {
        card.classList.add('cut');
        card.setAttribute('aria-busy', 'false');
    }
    for (const part of document.querySelectorAll('article.card, .verdict')) part.classList.add('lost');
}

function lost() {
    away('The connection to the demo was lost: once it is back, ask again.', 'article[aria-busy=true]');
}

async function refuse(answer) {
    refused = true;
    const said = await answer.json().catch(() => ({}));
    away(typeof said.detail === 'string' ? said.detail : 'The demo did not take this question: ask again.', 'article.card');
}

function found(asked) {
    if (refused && !asked) return;
    refused = false;
    find('#vtc-lost').hidden = true;
    if (asked) for (const card of document.querySelectorAll('.cut')) card.classList.remove('cut');
    if (!find('.cut')) find('.verdict.lost')?.classList.remove('lost');
    for (const card of document.querySelectorAll('article.lost:not(.cut)')) card.classList.remove('lost');
}

async function follow(stream) {  // on which answers come: when it breaks off, no more of them will
    try {
        for (const reader = stream.getReader(); !(await reader.read()).done;);
    } catch (error) {
        if (error?.name !== 'AbortError') lost();
    }
}

const reach = window.fetch;
window.fetch = async (...what) => {
    const path = String(what[0]?.url ?? what[0]), asked = path.includes('/queue/join');
    try {
        const answer = await reach(...what);
        if (asked && !answer.ok) refuse(answer.clone());
        else found(asked);
        if (path.includes('/queue/data')) follow(answer.clone().body);
        return answer;
    } catch (error) {
        if (error?.name !== 'AbortError') lost();
        throw error;
    }
};

element.insertAdjacentHTML('beforeend', '<p id="vtc-lost" class="notice error" role="alert" hidden></p>'
    + '<p id="vtc-said" role="status"></p>');

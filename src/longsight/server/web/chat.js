// The conversation on the page: what was said, and the request for what comes next.

import { AnswerView } from "./answer.js";
import { Composer } from "./composer.js";
import { byId, eachFrame } from "./dom.js";
import { learn } from "./estimate.js";
import { emptyAnswer, Generation } from "./generation.js";
import { messagesOf } from "./messages.js";
import { showUsage } from "./meter.js";
import { sampling, settings, tools } from "./settings.js";
import { add, children, choose, newConversation, path, titleOf } from "./tree.js";
import { UserView } from "./user-message.js";

const SAVE_EVERY = 2000; // milliseconds, while an answer grows
const log = byId("log");
const send = byId("send");
const stop = byId("stop");
const latest = byId("latest");

export class Chat {
  /** contextLength() of the chosen model; openMicroscope({messages, tools, thinking}) asks the same there; save(conversation)
      keeps it; onShow(id) is told which conversation is shown, null for a new one. */
  constructor({ contextLength, openMicroscope, save, onShow }) {
    Object.assign(this, { contextLength, openMicroscope, onShow });
    this.gone = new Set(); // ids of deleted conversations, whose last words are not kept
    this.save = (conversation) => this.gone.has(conversation.id) || save(conversation);
    this.running = new Map(); // conversation id -> Generation; answers go on when another conversation is shown
    this.composer = new Composer({ onSend: (message) => this.say(message), room: () => this.room() });
    this.following = true; // until somebody scrolls up
    this.follow = eachFrame(() => this.followNow());
    log.addEventListener("scroll", () => {
      this.following = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      latest.hidden = this.following;
    });
    latest.addEventListener("click", () => {
      this.following = true;
      this.follow();
    });
    new ResizeObserver(() => this.follow()).observe(log);
    stop.addEventListener("click", () => this.generation?.stop());
    byId("new-chat").addEventListener("click", () => {
      this.show(newConversation());
      this.composer.fill({ content: "", files: [] });
    });
    document.addEventListener("keydown", (event) => {
      const open = document.querySelector("dialog[open], .menu");
      if (event.key === "Escape" && !open && !byId("chat").hidden) this.generation?.stop();
    });
    addEventListener("pagehide", () => this.running.forEach(({ conversation }) => this.save(conversation)));
    this.show(newConversation());
  }

  get generation() {
    return this.running.get(this.conversation.id);
  }

  /** What the last answer of this branch used. */
  get usage() {
    return path(this.conversation).findLast((node) => node.usage)?.usage ?? null;
  }

  room() {
    const limit = this.contextLength();
    return { limit, left: (limit ?? 0) - (this.usage?.total_tokens ?? 0) };
  }

  showContext() {
    showUsage(this.usage, this.contextLength());
    this.composer.changed();
  }

  show(conversation) {
    this.conversation = conversation;
    this.views = new Map(); // node id -> view
    this.following = true;
    this.draw();
    this.onShow(conversation.head ? conversation.id : null);
  }

  /** The branch that is shown, as views; those that stay keep their state. */
  draw() {
    const nodes = path(this.conversation);
    log.querySelectorAll(".message").forEach((element) => element.remove());
    for (const node of nodes) {
      const view = this.views.get(node.id) ?? this.viewOf(node);
      const versions = children(this.conversation, node.parent);
      view.setBranch(versions.indexOf(node), versions.length);
      log.append(view.element);
    }
    byId("conversation-title").textContent = nodes.length ? titleOf(this.conversation) : "";
    this.showContext();
    this.showRunning();
    this.follow();
  }

  viewOf(node) {
    const onBranch = (step) => this.moveBranch(node, step);
    const view =
      node.role === "user"
        ? new UserView(node, { onBranch, onEdit: (content, files) => this.say({ content, files }, node.parent) })
        : new AnswerView(node, {
            live: this.generation?.node === node,
            onBranch,
            onRetry: () => this.generation || this.answer(node.parent),
            onMicroscope: () => this.microscope(node),
            onResults: () => !this.generation && (this.answer(node.id), true),
            onDraw: () => this.follow(),
          });
    this.views.set(node.id, view);
    return view;
  }

  moveBranch(node, step) {
    if (this.generation) return;
    const versions = children(this.conversation, node.parent);
    choose(this.conversation, versions[versions.indexOf(node) + step]);
    this.following = false;
    this.draw();
    this.save(this.conversation);
  }

  followNow() {
    if (this.following) log.scrollTop = log.scrollHeight;
    latest.hidden = this.following || log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  }

  /** A message after `parent`; returns whether it was taken. */
  say({ content, files }, parent = this.conversation.head) {
    if (this.generation) return false;
    const node = add(this.conversation, parent, { role: "user", content, files });
    this.answer(node.id);
    return true;
  }

  microscope(node) {
    const messages = messagesOf(path(this.conversation, node.parent), settings.system);
    try {
      this.openMicroscope({ messages, tools: tools(), thinking: thinking() });
    } catch (error) {
      this.views.get(node.id).complain(error);
    }
  }

  /** Asks for an answer after the node `parent`. */
  async answer(parent) {
    const { conversation } = this;
    const messages = messagesOf(path(conversation, parent), settings.system);
    const node = add(conversation, parent, emptyAnswer());
    const view = () => (this.conversation === conversation ? this.views.get(node.id) : undefined);
    let saved = -Infinity;
    const generation = new Generation(conversation, node, {
      onChange: () => {
        view()?.draw();
        if (performance.now() - saved < SAVE_EVERY) return;
        saved = performance.now();
        this.save(conversation);
      },
      onProgress: (progress) => view()?.showProgress(progress),
    });
    this.running.set(conversation.id, generation);
    this.following = true;
    this.draw();
    this.onShow(conversation.id);
    this.save(conversation);
    await generation.run(() => this.request(messages));
    this.running.delete(conversation.id);
    conversation.updated = Date.now();
    view()?.end();
    if (node.usage) learn(settings.model, JSON.stringify(messages).length, node.usage.prompt_tokens);
    if (this.conversation === conversation) {
      this.showContext();
      this.showRunning();
    }
    this.save(conversation);
  }

  /** The conversation `id` if it is at hand: as it is now, an answer under way included. */
  find(id) {
    if (this.conversation.id === id) return this.conversation;
    return this.running.get(id)?.conversation;
  }

  rename(id, title) {
    const conversation = this.find(id);
    if (conversation) Object.assign(conversation, { title, named: true });
    if (conversation === this.conversation) byId("conversation-title").textContent = title;
  }

  /** The conversation `id` is deleted. */
  forget(id) {
    this.gone.add(id);
    this.running.get(id)?.stop();
    if (this.conversation.id === id) this.show(newConversation());
  }

  request(messages) {
    const body = {
      model: settings.model,
      messages,
      ...sampling(),
      stream: true,
      stream_options: { include_usage: true },
      return_progress: true,
      reasoning_split: true,
    };
    const mode = thinking();
    if (mode) body.thinking = mode;
    const known = tools();
    if (known) body.tools = known;
    return body;
  }

  showRunning() {
    const running = Boolean(this.generation);
    stop.hidden = !running;
    send.hidden = running;
  }
}

const thinking = () => (settings.thinking ? { type: settings.thinking } : undefined);

/* "Mark as Parameters": the tag that makes a cell the signature of its notebook. A notebook has one such cell. */

const COMMAND = 'scalekit:mark-parameters';
const TAG = 'parameters';

const tagsOf = cell => cell.getMetadata('tags') ?? [];
const isMarked = cell => tagsOf(cell).includes(TAG);

export function addParameters(app, { tracker, palette }) {
  /** The cell that was clicked on, where the command stands in a context menu, else the active one */
  const findCell = ({ isMenu }) => {
    const isCell = node => node.classList.contains('jp-CodeCell');
    const node = isMenu ? app.contextMenuHitTest(isCell) : undefined;
    const clicked = node && tracker.currentWidget?.content.widgets.find(cell => cell.node === node);
    return (clicked ?? tracker.activeCell)?.model;
  };
  app.commands.addCommand(COMMAND, {
    label: 'Mark as Parameters',
    caption: 'Values of this cell can be given anew for each run',
    isEnabled: args => findCell(args)?.type === 'code',
    isToggleable: true,
    isToggled: args => Boolean(findCell(args) && isMarked(findCell(args))),
    execute: args => {
      const notebook = tracker.currentWidget?.content.model;
      const cell = findCell(args);
      if (notebook && cell?.type === 'code') markCell(notebook, cell, !isMarked(cell));
    }
  });
  app.contextMenu.addItem({
    command: COMMAND,
    selector: '.jp-Notebook .jp-CodeCell',
    rank: 30,
    args: { isMenu: true }
  });
  palette?.addItem({ command: COMMAND, category: 'scalekit' });
}

/** Tag a cell, or take its tag away; one step for undo, whatever other cell had the tag before */
function markCell(notebook, cell, marked) {
  const changes = [...notebook.cells]
    .map(one => [one, marked && one === cell])
    .filter(([one, shall]) => isMarked(one) !== shall);
  notebook.sharedModel.undoManager?.stopCapturing(); // else it is one step with what was done right before
  notebook.sharedModel.transact(() => {
    for (const [one, shall] of changes) {
      const others = tagsOf(one).filter(tag => tag !== TAG);
      const tags = shall ? [...others, TAG] : others;
      if (tags.length) one.setMetadata('tags', tags);
      else one.deleteMetadata('tags');
    }
  });
}
